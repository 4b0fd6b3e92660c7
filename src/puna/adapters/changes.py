"""Applies the changes of an adapter to rows of a model's tensors, in NumPy. O outputs, I inputs, D hidden, n rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from puna.adapters.adapter import Adapter, Floats, LowRank
from puna.checkpoint.names import EMBEDDING
from puna.checkpoint.weight import Index


def change_rows(adapter: Adapter, name: str, values: Floats, rows: Index, column_norms: Floats | None = None) -> Floats:
    """Returns rows of the adapted matrix.

    Args:
        name: Hugging Face's name of the matrix.
        values: (n, I), the same rows of the matrix that the adapter changes: the replaced one, if it is replaced.
        rows: (n,), the indices of the rows.
        column_norms: the result of `changed_column_norms`, for an embedding with DoRA.
    """
    values = _with_tokens(adapter, name, values, rows)
    if change := adapter.low_rank.get(name):
        values = _add(change, values, rows)
        if change.magnitude is not None and name == EMBEDDING:
            assert column_norms is not None, "DoRA of the embedding needs the norms of the columns"
            values = values * (change.magnitude / column_norms)
        elif change.magnitude is not None:
            values = values * (change.magnitude[rows] / np.linalg.norm(values, axis=1))[:, None]
    if scaling := adapter.scalings.get(name):
        values = values * (scaling.factors if scaling.side == "inputs" else scaling.factors[rows][:, None])
    return values


def changed_column_norms(adapter: Adapter, name: str, pieces: Iterable[tuple[Floats, Index]]) -> Floats:
    """Returns the norms of the columns of a matrix with its low-rank change, (I,), from pieces (values, rows)."""
    change = adapter.low_rank[name]
    total = np.zeros(change.a.shape[1], np.float64)
    for values, rows in pieces:
        total += np.square(_add(change, _with_tokens(adapter, name, values, rows), rows), dtype=np.float64).sum(axis=0)
    return np.sqrt(total).astype(np.float32)


def change_bias(adapter: Adapter, weight: str, bias: Floats | None) -> Floats | None:
    """Returns the bias (O,) of the layer whose matrix is `weight`, with its changes; None if there is none.

    Args:
        bias: the model's bias, or the one that replaces it; None if the model has none.
    """
    change, scaling = adapter.low_rank.get(weight), adapter.scalings.get(weight)
    if change is not None and change.bias is not None:
        bias = change.bias if bias is None else bias + change.bias
    if bias is not None and scaling is not None and scaling.side == "outputs":
        bias = bias * scaling.factors
    return bias


def _with_tokens(adapter: Adapter, name: str, values: Floats, rows: Index) -> Floats:
    """Returns the rows with those of trained tokens replaced."""
    tokens = adapter.token_rows.get(name)
    if tokens is None:
        return values
    values, place = values.copy(), {int(row): index for index, row in enumerate(rows)}
    for token, row in zip(tokens.ids, tokens.values, strict=True):
        if int(token) in place:
            values[place[int(token)]] = row
    return values


def _add(change: LowRank, values: Floats, rows: Index) -> Floats:
    """Returns the rows with the low-rank change added, rounded once to float32."""
    delta = change.b[rows].astype(np.float64) @ change.a.astype(np.float64)
    result: Floats = (values + change.scale * delta).astype(np.float32)
    return result
