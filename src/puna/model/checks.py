"""Checks of tensor arguments. Each is cheap; its error names the argument, its value and the limit.

Values are checked on the CPU only: on an accelerator, reading them would wait for the device, which reports invalid
indices itself.

Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError

IGNORED = -100
"""The label of positions that are not predicted; PyTorch's default `ignore_index`."""


def check_ids(ids: Any) -> None:
    """Raises RequestError unless `ids` is an integer tensor (B, T) with B, T >= 1."""
    _check_tensor("input_ids", ids)
    if ids.dim() != 2 or 0 in ids.shape:
        raise RequestError(
            f"input_ids has shape {tuple(ids.shape)}; it must be (batch, tokens), 1 row and 1 token or more; "
            "input_ids[None] adds the batch axis to a 1-D tensor"
        )
    if ids.dtype not in (torch.int32, torch.int64):
        raise RequestError(f"input_ids is of type {ids.dtype}; it must be torch.int64 or torch.int32: use .long()")


def check_embeddings(embeds: Any, width: int) -> None:
    """Raises RequestError unless `embeds` is a float tensor (B, T, width) with B, T >= 1."""
    _check_tensor("inputs_embeds", embeds)
    if embeds.dim() != 3 or embeds.shape[-1] != width or 0 in embeds.shape:
        raise RequestError(
            f"inputs_embeds has shape {tuple(embeds.shape)}; it must be (batch, tokens, {width}), 1 row and 1 token or "
            "more"
        )
    if not embeds.is_floating_point():
        raise RequestError(f"inputs_embeds is of type {embeds.dtype}; it must have the weights' float type")


def check_classes(labels: Any, shape: tuple[int, ...], classes: int) -> None:
    """Raises RequestError unless `labels` is an integer tensor of this shape with values 0 to classes - 1, or -100."""
    check_label_shape(labels, shape)
    if labels.is_floating_point() or labels.is_complex():
        raise RequestError(f"labels are of type {labels.dtype}; classes must be whole numbers: use .long()")
    if labels.device.type != "cpu":
        return
    invalid = labels[((labels < 0) | (labels >= classes)) & (labels != IGNORED)]
    if invalid.numel():
        raise RequestError(f"labels holds {int(invalid[0])}; labels must be 0 to {classes - 1}, or {IGNORED} (ignored)")


def check_label_shape(labels: Any, shape: tuple[int, ...]) -> None:
    """Raises RequestError unless `labels` is a tensor of this shape."""
    _check_tensor("labels", labels)
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


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise RequestError(f"{name} is a {type(value).__name__}; it must be a tensor: use torch.tensor(...)")
