"""Forward hooks that change the outputs of PyTorch modules: low-rank changes, factors, virtual tokens.

`torch_apply` uses these hooks for adapters from files, and training for adapters whose tensors have gradients.

Legend: B batch, T tokens, N virtual tokens, D hidden, I inputs, O outputs, R width of a bottleneck, L layers, K kv
heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from puna.adapters.adapter import Activation
from puna.errors import CheckpointError
from puna.model.cache import KVCache, cached_tokens
from puna.model.pretrained import LlamaPreTrainedModel


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Returns the module of the tensor with Hugging Face's `name`; a bare `LlamaModel` has no "model.".

    Raises:
        CheckpointError: the model has no such module.
    """
    path = name.rpartition(".")[0]
    path = path if hasattr(model, "model") else path.removeprefix("model.")
    try:
        return model.get_submodule(path)
    except AttributeError as exc:
        raise CheckpointError(
            f"the adapter changes {name!r}, which {type(model).__name__} does not have; use the class that the adapter "
            "was trained with"
        ) from exc


def add_change(
    module: nn.Module, delta: Callable[[Tensor], Tensor], factors: Callable[[], Tensor] | None = None
) -> RemovableHandle:
    """Adds `delta` of the inputs to the outputs of a linear layer, in float32.

    Args:
        delta: maps inputs (..., I) float32 to the change of the outputs (..., O).
        factors: returns factors (O,) of the changed outputs without the layer's bias, as DoRA has; None: no factors.
    """

    def add(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = delta(inputs[0].float())
        if factors is None:
            return (output.float() + change).to(output.dtype)
        own = torch.zeros(()) if layer.bias is None else layer.bias.float()
        scaled: Tensor = (output.float() - own + change) * factors() + own
        return scaled.to(output.dtype)

    return module.register_forward_hook(add)


def add_factors(module: nn.Module, factors: Tensor, side: Literal["inputs", "outputs"]) -> RemovableHandle:
    """Multiplies the inputs (..., I) or the outputs (..., O) of a linear layer by float32 factors."""

    def scale_inputs(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((inputs[0] * factors).to(inputs[0].dtype), *inputs[1:])

    def scale_outputs(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output * factors).to(output.dtype)

    if side == "inputs":
        return module.register_forward_pre_hook(scale_inputs)
    return module.register_forward_hook(scale_outputs)


def add_network(
    module: nn.Module, parts: tuple[Tensor, Tensor, Tensor, Tensor], activation: Activation
) -> RemovableHandle:
    """Adds a bottleneck adapter after a linear layer: x + up f(down x + down_bias) + up_bias, computed in float32.

    Args:
        parts: down (R, O), down_bias (R,), up (O, R) and up_bias (O,).
        activation: the name of f.
    """
    down, down_bias, up, up_bias = parts

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = output.float()
        inner = getattr(F, activation)(F.linear(x, down, down_bias))  # (..., R)
        return (x + F.linear(inner, up, up_bias)).to(output.dtype)

    return module.register_forward_hook(add)


def add_virtual_tokens(
    model: LlamaPreTrainedModel, kind: Literal["prompt", "prefix"], count: int, values: Callable[[], Tensor]
) -> RemovableHandle:
    """Makes calls of a model without a cache start with a soft prompt or a prefix.

    A mask of a later call, with a cache, may leave out the virtual tokens; `model.generate()` therefore needs nothing.

    Args:
        count: number of virtual tokens, N.
        values: returns the soft prompt (N, D) or the prefix (L, 2, K, N, E).
    """

    def prepend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        names = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        first = arguments.get("inputs_embeds") if arguments.get("input_ids") is None else arguments["input_ids"]
        if first is None:  # forward reports the error
            return (), arguments
        if arguments.get("past_key_values"):
            return (), arguments | dict(_with_cached_tokens(count, first.shape[1], arguments))
        add = _with_prompt if kind == "prompt" else _with_prefix
        mask = arguments.get("attention_mask")
        if mask is not None:
            arguments["attention_mask"] = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)  # (B, N + T)
        return (), arguments | dict(add(model, values().to(first.device), first, arguments))

    return model.register_forward_pre_hook(prepend, with_kwargs=True)


def _with_cached_tokens(count: int, tokens: int, arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the mask and the positions of a call with a cache, if they leave out the virtual tokens of the cache.

    Without a mask, there is no padding, so that the last position is one less than the number of tokens.
    """
    mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    own = cached_tokens(arguments["past_key_values"]) + tokens - count  # tokens that are not virtual
    if mask is None:
        is_shifted = positions is None or bool((positions[:, -1] != own - 1).any())
    else:
        is_shifted = mask.dim() != 2 or mask.shape[1] != own
    if is_shifted:
        return
    if mask is not None:
        yield "attention_mask", torch.cat([mask.new_ones(len(mask), count), mask], dim=1)  # (B, cached + T)
    if positions is not None:
        yield "position_ids", positions + count


def _with_prefix(
    model: LlamaPreTrainedModel, prefix: Tensor, first: Tensor, arguments: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yields the changed arguments of forward: a cache, and the positions after it."""
    batch, layers = len(first), prefix.to(model.dtype)  # (L, 2, K, N, E)
    yield "past_key_values", KVCache((k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)) for k, v in layers)
    if (positions := arguments.get("position_ids")) is not None:
        yield "position_ids", positions + prefix.shape[3]


def _with_prompt(
    model: LlamaPreTrainedModel, prompt: Tensor, first: Tensor, arguments: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yields the changed arguments of forward: embeddings, positions and labels."""
    batch, count = len(first), len(prompt)
    embeds, positions, labels = (arguments.get(name) for name in ("inputs_embeds", "position_ids", "labels"))
    embeds = model.get_input_embeddings()(first) if embeds is None else embeds  # (B, T, D)
    yield "input_ids", None
    yield "inputs_embeds", torch.cat([prompt.to(embeds.dtype).expand(batch, -1, -1), embeds], dim=1)  # (B, N + T, D)
    if positions is not None:
        start = torch.arange(count, device=first.device).expand(len(positions), -1)
        yield "position_ids", torch.cat([start, positions + count], dim=1)
    if labels is not None and labels.shape == (batch, first.shape[1]) and model.head == "lm":
        yield "labels", torch.cat([labels.new_full((batch, count), -100), labels], dim=1)
