"""Helpers of `PreTrainedModel` for masks, for compatibility. puna's models do not use them (`attention.build_mask`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.checks import check_tensor


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 0 where the mask is 1, and the lowest number of `dtype` where it is 0."""
    return (1.0 - mask.to(dtype)) * torch.finfo(dtype).min


def causal_mask(attention_mask: Tensor, tokens: int) -> Tensor:
    """Returns an extended mask (B, 1, tokens, S) of 0 and 1: causal order and the padding of a mask (B, S)."""
    total = attention_mask.shape[1]
    order = torch.ones(tokens, total, device=attention_mask.device).tril(total - tokens)
    return order.to(attention_mask.dtype)[None, None] * attention_mask[:, None, None, :]


def extended(attention_mask: Tensor, shape: Sequence[int], dtype: torch.dtype, causal: bool) -> Tensor:
    """Returns the additive mask, which broadcasts to (B, heads, T, S), of a mask (B, S) or (B, T, S).

    Raises:
        RequestError: if the mask has another number of dimensions.
    """
    check_tensor("attention_mask", attention_mask)
    if attention_mask.dim() == 3:
        return additive(attention_mask[:, None], dtype)
    if attention_mask.dim() != 2:
        raise RequestError(
            f"Wrong shape for input_ids (shape {tuple(shape)}) or attention_mask (shape "
            f"{tuple(attention_mask.shape)}); the mask must have two or three dimensions"
        )
    if not causal:
        return additive(attention_mask[:, None, None], dtype)
    return additive(causal_mask(attention_mask, shape[1]), dtype)


def layer_masks(head_mask: Tensor, layers: int, dtype: torch.dtype) -> Tensor:
    """Returns (layers, B or 1, heads, T or 1, S or 1) from a head mask (heads,) or (layers, heads).

    Raises:
        RequestError: if the mask has another number of dimensions.
    """
    if head_mask.dim() == 1:
        head_mask = head_mask[None, None, :, None, None].expand(layers, -1, -1, -1, -1)
    elif head_mask.dim() == 2:
        head_mask = head_mask[:, None, :, None, None]
    if head_mask.dim() != 5:
        raise RequestError(f"head_mask has shape {tuple(head_mask.shape)}; it must be (heads,) or (layers, heads)")
    return head_mask.to(dtype)
