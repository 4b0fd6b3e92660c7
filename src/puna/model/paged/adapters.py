"""Adapters of `TorchBackend`: low-rank products that are added to the tokens of some chunks.

Legend: N tokens of the batch, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.backend import LowRank
from puna.errors import BackendError

Segment = tuple[slice, int]
"""Consecutive tokens of a batch, and the number of their adapter."""


@dataclass(frozen=True)
class Product:
    """`puna.backend.LowRank` as tensors of the model's device, in float32."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    row_scale: Tensor | None

    def change(self, x: Tensor, output: Tensor, model_bias: Tensor | None) -> Tensor:
        """Returns a layer's changed output, (n, O), for its inputs, (n, I), and its output without the adapter."""
        delta = F.linear(F.linear(x.float(), self.a), self.b)
        changed = output.float() + delta
        if self.row_scale is not None:
            own = 0.0 if model_bias is None else model_bias.float()
            changed = (changed - own) * self.row_scale + own
        return (changed if self.bias is None else changed + self.bias).to(output.dtype)


class Adapters:
    """The loaded adapters of a model, by number."""

    def __init__(self, model: nn.Module) -> None:
        self.loaded: dict[int, dict[str, Product]] = {}
        self._model = model
        self._last = 0

    def load(self, products: Mapping[str, LowRank]) -> int:
        """Loads changes by the names of the matrices; returns a new number.

        Raises:
            BackendError: if the model has no such matrix, or it has another shape.
        """
        tensors = {name: self._product(name, low) for name, low in products.items()}
        self._last += 1
        self.loaded[self._last] = tensors
        return self._last

    @contextmanager
    def applied(self, segments: Sequence[Segment]) -> Iterator[None]:
        """Context manager: the model's linear layers add the products of each segment's adapter."""
        changes: dict[str, list[tuple[slice, Product]]] = {}
        for rows, number in segments:
            for name, product in self.loaded.get(number, {}).items():
                changes.setdefault(name, []).append((rows, product))
        hooks = [self._layer(name).register_forward_hook(_hook(parts)) for name, parts in changes.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layer(self, name: str) -> nn.Linear:
        try:
            layer = self._model.get_submodule(name.removesuffix(".weight"))
        except AttributeError:
            layer = None
        if not isinstance(layer, nn.Linear):
            raise BackendError(f"the adapter changes {name!r}, which is not a matrix product of the model")
        return layer

    def _product(self, name: str, low: LowRank) -> Product:
        layer = self._layer(name)
        expected = (layer.out_features, layer.in_features)
        if (low.b.shape[0], low.a.shape[1]) != expected or low.a.shape[0] != low.b.shape[1]:
            raise BackendError(
                f"the adapter's matrices of {name!r} have shapes {low.a.shape} and {low.b.shape}; they must be (rank, "
                f"{expected[1]}) and ({expected[0]}, rank). Use the adapter's base model"
            )
        device = next(self._model.parameters()).device

        def tensor(values: NDArray[np.float32] | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values).to(device, torch.float32)

        return Product(*map(tensor, (low.a, low.b, low.bias, low.row_scale)))  # type: ignore[arg-type]


def segments_of(rows: Iterable[tuple[int, int]]) -> list[Segment]:
    """Returns the segments of chunks, given as (number of tokens, adapter); neighbours with one adapter are joined."""
    segments: list[Segment] = []
    row = 0
    for tokens, adapter in rows:
        if segments and segments[-1][1] == adapter:
            segments[-1] = slice(segments[-1][0].start, row + tokens), adapter
        else:
            segments.append((slice(row, row + tokens), adapter))
        row += tokens
    return [segment for segment in segments if segment[1]]


def _hook(parts: Sequence[tuple[slice, Product]]) -> Callable[..., Tensor]:
    def add(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """`inputs` is (1, N, I) or, in the head, (N, I)."""
        x, changed = inputs[0], output.clone()
        for rows, product in parts:
            changed[..., rows, :] = product.change(x[..., rows, :], output[..., rows, :], layer.bias)
        return changed

    return add
