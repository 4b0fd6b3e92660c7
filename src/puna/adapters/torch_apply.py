"""`apply_adapter`: runs a PyTorch model with an adapter, and without it again. This module needs PyTorch.

Forward hooks add low-rank changes and scale inputs or outputs, so that the model's weights stay as they are and the
matrices may be of any type. Complete tensors and rows of tokens replace parameters until the adapter is removed.

Legend: B batch, T tokens, N virtual tokens, D hidden, R rank, I inputs, O outputs, K kv heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.adapters.adapter import Adapter, Floats, LowRank
from puna.adapters.changes import change_rows, changed_column_norms
from puna.adapters.runtime import check_prefix
from puna.adapters.torch_hooks import add_change, add_factors, add_network, add_virtual_tokens, find_module
from puna.checkpoint.names import EMBEDDING
from puna.errors import CheckpointError, RequestError
from puna.model.pretrained import LlamaPreTrainedModel
from puna.model.quantized import QuantEmbedding, QuantLinear


class AppliedAdapter:
    """An adapter that a model applies until `remove()` is called, or until the end of a `with` block."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def add(self, undo: Callable[[], None]) -> None:
        """Adds a function that `remove` calls."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Restores the model."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> AppliedAdapter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def apply_adapter(model: LlamaPreTrainedModel, adapter: Adapter) -> AppliedAdapter:
    """Applies an adapter to all calls of the model, until the result is removed.

    With a soft prompt, the outputs of a call without a cache include the positions of the N virtual tokens. With a soft
    prompt or a prefix, the returned cache contains them; the attention mask of a later call with this cache may contain
    or leave out their N columns.

    Raises:
        CheckpointError: the model lacks a tensor that the adapter changes, or its tensor has another shape.
        RequestError: the rope type cannot use a prefix.
    """
    applied = AppliedAdapter()
    try:
        for name, source in adapter.replaced.items():
            _replace(applied, model, name, source.format.decode(source.data).reshape(source.shape))
        for name in {*adapter.token_rows, *(EMBEDDING,) * (EMBEDDING in adapter.low_rank)}:
            _replace(applied, model, name, _changed(adapter, name, _parameter(model, name)))
        for name, change in adapter.low_rank.items():
            if name != EMBEDDING:
                _add_low_rank(applied, find_module(model, name), change)
        for name, scaling in adapter.scalings.items():
            module = find_module(model, name)
            factors = torch.from_numpy(scaling.factors).to(_matrix(module).device)
            applied.add(add_factors(module, factors, scaling.side).remove)
        for name, item in adapter.bottlenecks.items():
            module = find_module(model, name)
            down, down_bias, up, up_bias = (
                torch.from_numpy(part).to(_matrix(module).device)
                for part in (item.down, item.down_bias, item.up, item.up_bias)
            )
            applied.add(add_network(module, (down, down_bias, up, up_bias), item.activation).remove)
        _add_virtual_tokens(applied, model, adapter)
    except BaseException:
        applied.remove()
        raise
    return applied


def _matrix(module: nn.Module) -> Tensor:
    """Returns the matrix of a linear layer; a dequantised copy if the layer keeps it packed."""
    matrix = module.weight
    assert isinstance(matrix, Tensor)
    return matrix


def _parameter(model: LlamaPreTrainedModel, name: str) -> nn.Parameter:
    module = find_module(model, name)
    if isinstance(module, QuantLinear | QuantEmbedding):
        raise RequestError(
            f"the adapter replaces rows of {name!r}, which the model keeps packed; load the model without "
            "keep_quantized, or call model.dequantize() first"
        )
    parameter = getattr(module, name.rpartition(".")[2], None)
    if not isinstance(parameter, nn.Parameter):
        raise CheckpointError(f"the adapter changes {name!r}, which the model does not have; use its base model")
    return parameter


def _replace(applied: AppliedAdapter, model: LlamaPreTrainedModel, name: str, values: Floats) -> None:
    """Replaces one parameter. A parameter of the same tensor under another name (a tied head) stays as it is."""
    old, module, attribute = _parameter(model, name), find_module(model, name), name.rpartition(".")[2]
    if values.shape != tuple(old.shape):
        raise CheckpointError(
            f"the adapter replaces {name!r} by a tensor of shape {values.shape}; the model's has {tuple(old.shape)}. "
            "Load the model with the adapter's num_labels, or resize its vocabulary with resize_token_embeddings"
        )
    new = nn.Parameter(torch.from_numpy(values).to(old.device, old.dtype), requires_grad=False)
    setattr(module, attribute, new)
    applied.add(lambda: setattr(module, attribute, old))


def _changed(adapter: Adapter, name: str, parameter: Tensor) -> Floats:
    """Returns all rows of the embedding, or of a head with trained tokens but without its low-rank change."""
    values: Floats = parameter.detach().float().cpu().numpy()
    rows, norms = np.arange(len(values)), None
    change = adapter.low_rank.get(name) if name == EMBEDDING else None
    only = Adapter(
        adapter.path, adapter.kind, adapter.config, token_rows=adapter.token_rows,
        low_rank={} if change is None else {name: change},
    )  # fmt: skip
    if change is not None and change.magnitude is not None:
        norms = changed_column_norms(only, name, [(values, rows)])
    return change_rows(only, name, values, rows, norms)


def _add_low_rank(applied: AppliedAdapter, module: nn.Module, change: LowRank) -> None:
    """Adds scale * (x @ a') @ b' to a linear layer's output, computed in float32."""
    weight = _matrix(module)
    a, b = (torch.from_numpy(part).to(weight.device) for part in (change.a, change.b * np.float32(change.scale)))
    bias = None if change.bias is None else torch.from_numpy(change.bias).to(weight.device)
    factors = None
    if change.magnitude is not None:
        norms = torch.linalg.vector_norm(weight.detach().float() + b @ a, dim=1)  # (O,)
        scales = torch.from_numpy(change.magnitude).to(weight.device) / norms
        factors = lambda: scales  # noqa: E731
    applied.add(add_change(module, lambda x: F.linear(F.linear(x, a), b, bias), factors).remove)


def _add_virtual_tokens(applied: AppliedAdapter, model: LlamaPreTrainedModel, adapter: Adapter) -> None:
    """Makes calls without a cache start with the soft prompt or the prefix."""
    values = adapter.prompt if adapter.prefix is None else adapter.prefix
    if values is not None:
        check_prefix(adapter, model.config)
        tensor = torch.from_numpy(values)
        kind: Literal["prompt", "prefix"] = "prompt" if adapter.prefix is None else "prefix"
        applied.add(add_virtual_tokens(model, kind, adapter.virtual_tokens, lambda: tensor).remove)
