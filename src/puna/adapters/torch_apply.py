"""`apply_adapter`: runs a PyTorch model with an adapter, and without it again. This module needs PyTorch.

Forward hooks add low-rank changes and scale inputs or outputs, so that the model's weights stay as they are and the
matrices may be of any type. Complete tensors and rows of tokens replace parameters until the adapter is removed.

Legend: B batch, T tokens, N virtual tokens, D hidden, R rank, I inputs, O outputs, K kv heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.adapters.adapter import Adapter, Floats, LowRank, Scaling
from puna.adapters.changes import change_rows, changed_column_norms
from puna.adapters.runtime import check_prefix
from puna.checkpoint.names import EMBEDDING
from puna.errors import CheckpointError, RequestError
from puna.model.cache import KVCache
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
    prompt or a prefix, the returned cache contains them, so that the attention mask of a later call with this cache has
    N more columns; `model.generate()` is not supported.

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
                hook = _low_rank_hook(change, _module(model, name))
                applied.add(_module(model, name).register_forward_hook(hook).remove)
        for name, scaling in adapter.scalings.items():
            _scale(applied, _module(model, name), scaling)
        _add_virtual_tokens(applied, model, adapter)
    except BaseException:
        applied.remove()
        raise
    return applied


def _module(model: LlamaPreTrainedModel, name: str) -> nn.Module:
    """Returns the module of the tensor with Hugging Face's `name`; a bare `LlamaModel` has no "model."."""
    path = name.rpartition(".")[0]
    path = path if hasattr(model, "model") else path.removeprefix("model.")
    try:
        return model.get_submodule(path)
    except AttributeError as exc:
        raise CheckpointError(
            f"the adapter changes {name!r}, which {type(model).__name__} does not have; use the class that the adapter "
            "was trained with"
        ) from exc


def _matrix(module: nn.Module) -> Tensor:
    """Returns the matrix of a linear layer; a dequantised copy if the layer keeps it packed."""
    matrix = module.weight
    assert isinstance(matrix, Tensor)
    return matrix


def _parameter(model: LlamaPreTrainedModel, name: str) -> nn.Parameter:
    module = _module(model, name)
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
    old, module, attribute = _parameter(model, name), _module(model, name), name.rpartition(".")[2]
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


def _low_rank_hook(change: LowRank, module: nn.Module) -> Callable[..., Tensor]:
    """Returns a hook that adds scale * (x @ a') @ b' to a linear layer's output, computed in float32."""
    weight = _matrix(module)
    a, b = (torch.from_numpy(part).to(weight.device) for part in (change.a, change.b * np.float32(change.scale)))
    bias = None if change.bias is None else torch.from_numpy(change.bias).to(weight.device)
    factors = None
    if change.magnitude is not None:
        norms = torch.linalg.vector_norm(weight.detach().float() + b @ a, dim=1)  # (O,)
        factors = torch.from_numpy(change.magnitude).to(weight.device) / norms

    def add(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].float()  # (..., I)
        delta = F.linear(F.linear(x, a), b, bias)  # (..., O)
        if factors is None:
            return (output.float() + delta).to(output.dtype)
        own = torch.zeros(()) if layer.bias is None else layer.bias.float()
        scaled: Tensor = (output.float() - own + delta) * factors + own
        return scaled.to(output.dtype)

    return add


def _scale(applied: AppliedAdapter, module: nn.Module, scaling: Scaling) -> None:
    """Multiplies the inputs or the outputs of a linear layer."""
    factors = torch.from_numpy(scaling.factors).to(_matrix(module).device)

    def scale_inputs(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((inputs[0] * factors).to(inputs[0].dtype), *inputs[1:])

    def scale_outputs(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output * factors).to(output.dtype)

    if scaling.side == "inputs":
        applied.add(module.register_forward_pre_hook(scale_inputs).remove)
    else:
        applied.add(module.register_forward_hook(scale_outputs).remove)


def _add_virtual_tokens(applied: AppliedAdapter, model: LlamaPreTrainedModel, adapter: Adapter) -> None:
    """Makes calls without a cache start with the soft prompt or the prefix."""
    if adapter.virtual_tokens == 0:
        return
    check_prefix(adapter, model.config)

    def prepend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        names = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        if arguments.get("past_key_values"):
            return (), arguments
        return (), arguments | dict(_with_virtual_tokens(model, adapter, arguments))

    applied.add(model.register_forward_pre_hook(prepend, with_kwargs=True).remove)


def _with_virtual_tokens(
    model: LlamaPreTrainedModel, adapter: Adapter, arguments: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yields the arguments of forward that change: embeddings or cache, mask, positions and labels."""
    count, ids, embeds = adapter.virtual_tokens, arguments.get("input_ids"), arguments.get("inputs_embeds")
    first = embeds if ids is None else ids
    if first is None:
        return  # forward reports the missing argument
    batch, device = first.shape[0], first.device
    mask, positions, labels = (arguments.get(name) for name in ("attention_mask", "position_ids", "labels"))
    if mask is not None:
        yield "attention_mask", torch.cat([mask.new_ones(batch, count), mask], dim=1)  # (B, N + T)
    if adapter.prefix is not None:
        prefix = torch.from_numpy(adapter.prefix).to(device, model.dtype)  # (L, 2, K, N, E)
        yield "past_key_values", KVCache((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in prefix)
        if positions is not None:
            yield "position_ids", positions + count
        return
    embeds = model.get_input_embeddings()(ids) if embeds is None else embeds  # (B, T, D)
    prompt = torch.from_numpy(adapter.prompt).to(device, embeds.dtype)  # (N, D)
    yield "input_ids", None
    yield "inputs_embeds", torch.cat([prompt.expand(batch, -1, -1), embeds], dim=1)  # (B, N + T, D)
    if positions is not None:
        start = torch.arange(count, device=device).expand(len(positions), -1)
        yield "position_ids", torch.cat([start, positions + count], dim=1)
    if labels is not None and labels.shape == (batch, first.shape[1]) and model.head == "lm":
        yield "labels", torch.cat([labels.new_full((batch, count), -100), labels], dim=1)
