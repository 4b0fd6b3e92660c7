"""Scaled dot-product attention over grouped heads, and its masks.

Legend: B batch, T tokens (queries), S keys (cached and new), H heads, K kv heads, E head width.

If a query may attend to no key (padding on the left), its output and its gradients are zero in every dtype: its row of
the mask is set to allow all keys, so that its softmax is finite, and its output is then set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.errors import RequestError
from puna.model.rope import LengthRotation, rotate


@dataclass(frozen=True)
class AttentionMask:
    """Which queries may attend to which keys.

    Attributes:
        allowed: bool, True if the query may attend to the key, or float, added to the scores; (B or 1, H or 1, T, S).
            None if every key is allowed, or if `causal` is set.
        empty: (B or 1, H or 1, T, 1), True for queries that may attend to no key; their rows of `allowed` allow all.
            None if there are no such queries.
        causal: plain causal order with T == S, which PyTorch's kernels implement without a mask.
    """

    allowed: Tensor | None = None
    empty: Tensor | None = None
    causal: bool = False

    def queries(self, part: slice) -> AttentionMask:
        """Returns the mask of part of the queries."""
        assert not self.causal, "a causal mask must be explicit to be sliced"
        return AttentionMask(
            None if self.allowed is None else self.allowed[:, :, part],
            None if self.empty is None else self.empty[:, :, part],
        )


def build_mask(attention_mask: Tensor | None, x: Tensor, past: int, explicit: bool) -> AttentionMask:
    """Returns the mask of the new tokens x, (B, T, D), which follow `past` cached ones.

    Args:
        attention_mask: None; (B, S) with 0 for padding, to which causal order is added; or (B or 1, H or 1, T, S), bool
            (True: attend) or float (added to the scores), to which nothing is added.
        x: the embedded tokens.
        past: number of cached tokens, so that S = past + T.
        explicit: return a mask tensor also for plain causal order, for code that does not use PyTorch's causal kernels.

    Raises:
        RequestError: if the mask has an unsupported shape or type.
    """
    batch, tokens = x.shape[:2]
    total = past + tokens
    if attention_mask is not None:
        attention_mask = attention_mask.to(x.device)
        if attention_mask.dim() == 4:
            return _read_4d(attention_mask, x, total)
        if attention_mask.shape != (batch, total):
            raise RequestError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; it must cover cached and new tokens, (batch, "
                f"past + tokens) = {(batch, total)}, or have four dimensions, (batch, 1, tokens, past + tokens)"
            )
        attention_mask = attention_mask.bool()
        if attention_mask.all():
            attention_mask = None
    if attention_mask is None and not explicit and tokens == total:
        return AttentionMask(causal=True)
    if attention_mask is None and tokens == 1:
        return AttentionMask()
    causal = torch.ones(tokens, total, dtype=torch.bool, device=x.device).tril(past)  # (T, S)
    allowed = causal[None, None] if attention_mask is None else causal & attention_mask[:, None, None]
    return _fill_empty_rows(allowed, ~allowed)  # (B or 1, 1, T, S)


def _read_4d(mask: Tensor, x: Tensor, total: int) -> AttentionMask:
    if mask.shape[0] not in (1, x.shape[0]) or mask.shape[2:] != (x.shape[1], total):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}; its last two sizes must be the new tokens and all tokens, "
            f"{(x.shape[1], total)}; its first size must be the batch, {x.shape[0]}, or 1"
        )
    if mask.dtype == torch.bool:
        return _fill_empty_rows(mask, ~mask)
    if not mask.is_floating_point():
        raise RequestError(
            f"attention_mask is of type {mask.dtype}; with four dimensions it must be bool (True: attend) or float "
            "(added to the scores)"
        )
    # To forbid a key, transformers adds the lowest number of the dtype, or twice that, which is minus infinity.
    return _fill_empty_rows(mask, mask <= torch.finfo(mask.dtype).min, x.dtype)


def _fill_empty_rows(allowed: Tensor, forbidden: Tensor, dtype: torch.dtype | None = None) -> AttentionMask:
    empty = forbidden.all(dim=-1, keepdim=True)  # (B, H, T, 1)
    if empty.any():
        allowed = allowed.masked_fill(empty, True if dtype is None else 0.0)
    return AttentionMask(allowed if dtype is None else allowed.to(dtype), empty if empty.any() else None)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float, weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns softmax(q k' / sqrt(E) + mask) v, and the attention weights (B, H, T, S) if `weights`.

    q is (B, H, T, E), k and v are (B, K, S, E); query head h reads kv head h K // H. The weights need the slower eager
    implementation, since PyTorch's fused kernels do not return them.
    """
    if weights:
        return _eager(q, k, v, mask, dropout)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask.allowed, dropout_p=dropout, is_causal=mask.causal, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out if mask.empty is None else out.masked_fill(mask.empty, 0.0), None


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> tuple[Tensor, Tensor]:
    assert not mask.causal, "the eager implementation needs an explicit mask"
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, H, S, E)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5  # (B, H, T, S)
    if mask.allowed is not None and mask.allowed.dtype == torch.bool:
        scores = scores.masked_fill(~mask.allowed, float("-inf"))
    elif mask.allowed is not None:
        scores = scores + mask.allowed
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    if mask.empty is not None:
        weights = weights.masked_fill(mask.empty, 0.0)
    weights = F.dropout(weights, dropout)
    return weights @ v, weights  # (B, H, T, E), (B, H, T, S)


def attend_by_length(
    q: Tensor, k: Tensor, v: Tensor, rope: LengthRotation, mask: AttentionMask, dropout: float, weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Calls `attend` for each run of queries with equal frequencies, for rope types that depend on the length."""
    parts = [
        attend(rotate(q[:, :, part], q_angles), rotate(k, k_angles), v, mask.queries(part), dropout, weights)
        for part, q_angles, k_angles in rope
    ]
    out = torch.cat([part[0] for part in parts], dim=2)  # (B, H, T, E)
    return out, torch.cat([part[1] for part in parts if part[1] is not None], dim=2) if weights else None
