"""Checks of tensor arguments. Each is cheap; its error names the argument, its value and the limit.

Values are checked on the CPU only: on an accelerator, reading them would wait for the device, which reports invalid
indices itself. While a graph is traced (`torch.compile`, `torch.export`), values are unknown and only shapes and types
are checked.

Legend: B batch, T tokens, S cached and new tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from puna.errors import ArgumentError, RequestError

IGNORED = -100
"""The label of positions that are not predicted; PyTorch's default `ignore_index`."""


def is_traced() -> bool:
    """Returns whether PyTorch traces the calling code into a graph, so that tensors have no values."""
    return torch.compiler.is_compiling()


def has_values(tensor: Tensor) -> bool:
    """Returns whether values can be read at all, which may wait for the device; not in graphs and `torch.func.vmap`."""
    return not is_traced() and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _has_values(tensor: Tensor) -> bool:
    """Returns whether values can be read without a wait for the device."""
    return tensor.device.type == "cpu" and has_values(tensor)


def check_one_input(input_ids: Any, inputs_embeds: Any, width: int) -> None:
    """Raises RequestError unless exactly one argument is given, and embeddings are floats (B, T, width), B, T >= 1."""
    if (input_ids is None) == (inputs_embeds is None):
        which = "neither" if input_ids is None else "both"
        raise RequestError(f"You must specify exactly one of input_ids or inputs_embeds; {which} was given")
    if inputs_embeds is not None:
        check_embeddings(inputs_embeds, width)


def check_ids(ids: Any, rows: int | None = None) -> None:
    """Raises RequestError unless `ids` is an integer tensor (B, T), B, T >= 1, with values below `rows`, if given."""
    check_tensor("input_ids", ids)
    if ids.dim() != 2 or 0 in ids.shape:
        raise RequestError(
            f"input_ids has shape {tuple(ids.shape)}; it must be (batch, tokens), 1 row and 1 token or more; "
            "input_ids[None] adds the batch axis to a 1-D tensor"
        )
    if ids.dtype not in (torch.int32, torch.int64):
        raise RequestError(f"input_ids is of type {ids.dtype}; it must be torch.int64 or torch.int32: use .long()")
    if rows is not None and _has_values(ids) and not 0 <= ids.min() <= ids.max() < rows:
        invalid = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise RequestError(
            f"input_ids holds {invalid}; the embedding has rows 0 to {rows - 1}. If the tokenizer has more tokens "
            "than the model, call resize_token_embeddings"
        )


def check_embeddings(embeds: Any, width: int) -> None:
    """Raises RequestError unless `embeds` is a float tensor (B, T, width) with B, T >= 1."""
    check_tensor("inputs_embeds", embeds)
    if embeds.dim() != 3 or embeds.shape[-1] != width or 0 in embeds.shape:
        raise RequestError(
            f"inputs_embeds has shape {tuple(embeds.shape)}; it must be (batch, tokens, {width}), 1 row and 1 token or "
            "more"
        )
    if not embeds.is_floating_point():
        raise RequestError(f"inputs_embeds is of type {embeds.dtype}; it must have the weights' float type")


def check_positions(position_ids: Tensor, batch: int, tokens: int) -> None:
    """Raises RequestError unless `position_ids` has the shape (B, T), (1, T) or (T,)."""
    check_tensor("position_ids", position_ids)
    if (
        position_ids.dim() > 2
        or position_ids.shape[-1] != tokens
        or position_ids.numel() not in (tokens, batch * tokens)
    ):
        raise RequestError(
            f"position_ids has shape {tuple(position_ids.shape)}; it must be (batch, tokens) = {(batch, tokens)}, "
            f"or (1, {tokens})"
        )


def check_further(arguments: Mapping[str, Any], cached: int, tokens: int) -> None:
    """Checks the remaining arguments of forward, none of which changes the hidden states.

    Accepted are any argument that is None, as by default in transformers; `num_items_in_batch`, an argument of the
    loss; and `cache_position`, (T,), which must be `cached`, `cached` + 1, ... (values are checked only on the CPU).

    Raises:
        ArgumentError: an argument is unknown.
        RequestError: `cache_position` has other values.
    """
    for name, value in arguments.items():
        if value is None or name == "num_items_in_batch":
            continue
        if name != "cache_position":
            raise ArgumentError(f"forward() got an unexpected keyword argument {name!r}; omit it")
        check_tensor(name, value)
        expected = torch.arange(cached, cached + tokens)
        if value.shape != expected.shape or (_has_values(value) and not torch.equal(value.long(), expected)):
            raise RequestError(
                f"cache_position has shape {tuple(value.shape)}; new tokens always follow the cache, so it must be "
                f"{cached} to {cached + tokens - 1}. Omit it, and pass position_ids for other positions"
            )


def check_mask(mask: Tensor, batch: int, tokens: int, total: int) -> None:
    """Raises RequestError unless `mask` is (B, S), or (B or 1, H or 1, T, S) of bool or float numbers; S is `total`."""
    check_tensor("attention_mask", mask)
    if mask.dim() != 4:
        if mask.shape != (batch, total):
            raise RequestError(
                f"attention_mask has shape {tuple(mask.shape)}; it must cover cached and new tokens, (batch, past + "
                f"tokens) = {(batch, total)}, or have four dimensions, (batch, 1, tokens, past + tokens)"
            )
        return
    if mask.shape[0] not in (1, batch) or mask.shape[2:] != (tokens, total):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}; its last two sizes must be the new tokens and all tokens, "
            f"{(tokens, total)}; its first size must be the batch, {batch}, or 1"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise RequestError(
            f"attention_mask is of type {mask.dtype}; with four dimensions it must be bool (True: attend) or float "
            "(added to the scores)"
        )


def allows_all(mask: Tensor) -> bool:
    """Returns whether a mask (B, S) is known to have no padding: its values are read on the CPU only."""
    return mask.dim() == 2 and _has_values(mask) and bool(mask.all())


def check_sequences(starts: Any, other: Any, numbers: Any, batch: int, tokens: int) -> None:
    """Checks the arguments of rows that hold several sequences; values only on the CPU.

    Args:
        starts: `cu_seq_lens_q`, (sequences + 1,): 0, the start of each other sequence, batch * tokens; or None.
        other: `cu_seq_lens_k`, which must be equal to `starts`; or None.
        numbers: `seq_idx`, (B, T) or (1, T); or None.

    Raises:
        RequestError: a shape, type or value is invalid, or a sequence continues in the next row.
    """
    if numbers is not None:
        check_tensor("seq_idx", numbers)
        if numbers.shape not in ((batch, tokens), (1, tokens)):
            raise RequestError(
                f"seq_idx has shape {tuple(numbers.shape)}; it must be (batch, tokens) = {(batch, tokens)}"
            )
    if starts is None:
        return
    check_tensor("cu_seq_lens_q", starts)
    if starts.dim() != 1 or starts.is_floating_point() or len(starts) < 2:
        raise RequestError(
            f"cu_seq_lens_q has shape {tuple(starts.shape)} and type {starts.dtype}; it must be an integer tensor "
            "(sequences + 1,)"
        )
    if not _has_values(starts):
        return
    rows = torch.arange(0, batch * tokens + 1, tokens)
    if (starts.diff() < 0).any() or starts[0] < 0 or starts[-1] > rows[-1] or not torch.isin(rows, starts).all():
        raise RequestError(
            f"cu_seq_lens_q holds {starts.tolist()[:8]}; it must increase from 0 to {batch * tokens}, the number of "
            f"tokens, and a sequence must end with its row of {tokens} tokens"
        )
    if isinstance(other, Tensor) and not torch.equal(starts, other.to(starts)):
        raise RequestError("cu_seq_lens_q and cu_seq_lens_k differ; queries and keys are the same tokens here")


def check_answer_positions(positions: Any, batch: int) -> None:
    """Raises RequestError unless `positions` is an integer tensor (B,) or (B, 1)."""
    check_tensor("start_positions or end_positions", positions)
    if positions.shape not in ((batch,), (batch, 1)) or positions.is_floating_point():
        raise RequestError(
            f"start_positions or end_positions has shape {tuple(positions.shape)} and type {positions.dtype}; it must "
            f"be an integer tensor (batch,) = ({batch},)"
        )


def check_layers(past: Any) -> None:
    """Raises RequestError unless `past` is a sequence of (keys, values), which are tensors."""
    if not isinstance(past, Sequence) or isinstance(past, str | bytes):
        raise RequestError(
            f"past_key_values is a {type(past).__name__}; it must be the KVCache of an earlier call, or a sequence "
            "of (keys, values), one per layer"
        )
    for layer in past:
        pair = isinstance(layer, Sequence) and len(layer) == 2 and all(isinstance(part, Tensor) for part in layer)
        if not pair or layer[0].dim() != 4:
            raise RequestError(
                "past_key_values has a layer that is not a pair of tensors (keys, values) with four dimensions; pass "
                "the past_key_values of an earlier call"
            )


def check_cache(past: Any, batch: int, heads: Sequence[int], width: int) -> None:
    """Raises RequestError unless `past` is empty or has (keys, values) for each layer; `heads` has K for each layer."""
    check_layers(past)
    if not past:
        return
    first = past[0][0].shape
    expected = [(batch, count, first[2], width) for count in heads]
    if len(past) != len(heads) or any(
        t.shape != shape for pair, shape in zip(past, expected, strict=True) for t in pair
    ):
        raise RequestError(
            f"past_key_values has {len(past)} layers, the first of shape {tuple(first)}; this model "
            f"and batch need {len(heads)} layers of (batch, kv heads, tokens, head_dim) = {expected[0]}"
        )


def check_cached_positions(length: int, new: Tensor, attention_mask: Tensor | None) -> None:
    """Checks that the `length` tokens of a cache without positions are at 0, 1, ..., without padding.

    Reads values on every device, because the results would otherwise be wrong; such caches are rare.

    Args:
        length: number of cached tokens.
        new: (B, T), the positions of the new tokens.
        attention_mask: the argument of forward; padding is detected only if it has two dimensions.

    Raises:
        RequestError: if the positions are missing and cannot be 0, 1, ...
    """
    if is_traced():
        return
    padded = attention_mask is not None and attention_mask.dim() == 2 and not attention_mask[:, :length].all()
    if padded or (new[:, 0] != length).any():
        raise RequestError(
            f"past_key_values has no positions for its {length} tokens, which this rope_type needs, since "
            "padding or position_ids changed them; pass the KVCache that forward returned, not a tuple, or "
            "KVCache(layers, positions)"
        )


def check_classes(labels: Any, shape: tuple[int, ...], classes: int) -> None:
    """Raises RequestError unless `labels` is an integer tensor of this shape with values 0 to classes - 1, or -100."""
    check_label_shape(labels, shape)
    if labels.is_floating_point() or labels.is_complex():
        raise RequestError(f"labels are of type {labels.dtype}; classes must be whole numbers: use .long()")
    if not _has_values(labels):
        return
    invalid = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
    if invalid.numel():
        raise RequestError(f"labels holds {int(invalid[0])}; labels must be 0 to {classes - 1}, or {IGNORED} (ignored)")


def check_label_shape(labels: Any, shape: tuple[int, ...]) -> None:
    """Raises RequestError unless `labels` is a tensor of this shape."""
    check_tensor("labels", labels)
    if labels.shape != shape:
        raise RequestError(f"labels has shape {tuple(labels.shape)}; it must be {tuple(shape)} here")


def check_logits_to_keep(keep: Any) -> None:
    """Raises RequestError unless `keep` is a number of tokens, 0 for all, or a 1-D tensor of indices."""
    if isinstance(keep, Tensor):
        valid = keep.dim() == 1 and not keep.is_floating_point()
    else:
        valid = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0
    if not valid:
        shown = f"of shape {tuple(keep.shape)} and type {keep.dtype}" if isinstance(keep, Tensor) else repr(keep)
        raise RequestError(
            f"logits_to_keep is {shown}; it must be a whole number, 0 or more (0: all), or a 1-D tensor of indices"
        )


def check_tensor(name: str, value: Any) -> None:
    """Raises RequestError unless `value` is a tensor."""
    if isinstance(value, Tensor):
        return
    if isinstance(value, Mapping):
        remedy = "pass the tokenizer's result as keywords, model(**inputs), made with return_tensors='pt'"
    elif isinstance(value, str):
        remedy = "use tokenizer(text, return_tensors='pt').input_ids"
    else:
        remedy = "use torch.tensor(...)"
    raise RequestError(f"{name} is a {type(value).__name__}; it must be a tensor: {remedy}")
