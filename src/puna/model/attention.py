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

from puna.model.checks import allows_all, check_mask

Pair = tuple[Tensor, Tensor]
"""A layer's keys and values, each (B, K, S, E)."""


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

    def by_query(self, batch: int) -> AttentionMask:
        """Returns the mask of a batch in which each query is a row: (B * T, H or 1, 1, S)."""
        assert not self.causal, "a causal mask must be explicit to be reshaped"

        def split(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else mask.expand(batch, -1, -1, -1).transpose(1, 2).flatten(0, 1)[:, :, None]

        return AttentionMask(split(self.allowed), split(self.empty))


def build_mask(attention_mask: Tensor | None, x: Tensor, past: int, explicit: bool) -> AttentionMask:
    """Returns the mask of the new tokens x, (B, T, D), which follow `past` cached ones.

    On an accelerator, values never decide which code runs: reading them would wait for it.

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
        check_mask(attention_mask, batch, tokens, total)
        attention_mask = None if allows_all(attention_mask) else attention_mask.to(x.device)
    if attention_mask is None and not explicit and past == 0:
        return AttentionMask(causal=True)
    if attention_mask is None and tokens == 1:
        return AttentionMask()
    if attention_mask is not None and attention_mask.dim() == 4 and attention_mask.dtype == torch.bool:
        return _fill_empty_rows(attention_mask, ~attention_mask)
    if attention_mask is not None and attention_mask.dim() == 4:
        # To forbid a key, transformers adds the lowest number of the dtype, or twice that, which is minus infinity.
        forbidden = attention_mask <= torch.finfo(attention_mask.dtype).min
        return _fill_empty_rows(attention_mask, forbidden, x.dtype)
    causal = torch.ones(tokens, total, dtype=torch.bool, device=x.device).tril(past)[None, None]  # (1, 1, T, S)
    if attention_mask is None:
        return AttentionMask(causal)
    allowed = causal & attention_mask.bool()[:, None, None]  # (B, 1, T, S)
    return _fill_empty_rows(allowed, ~allowed)


def _fill_empty_rows(allowed: Tensor, forbidden: Tensor, dtype: torch.dtype | None = None) -> AttentionMask:
    empty = forbidden.all(dim=-1, keepdim=True)  # (B, H, T, 1)
    return AttentionMask(allowed | empty if dtype is None else allowed.masked_fill(empty, 0.0).to(dtype), empty)


def extend(past: Pair | None, k: Tensor, v: Tensor) -> Pair:
    """Appends a layer's new keys and values, (B, K, T, E), to its cached ones, (B, K, S - T, E).

    Copying lets gradients flow. It moves twice the cache's bytes per decoded token, far fewer than the weights have.
    """
    if past is None:
        return k, v
    return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)  # (B, K, S, E)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float, weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns softmax(q k' / sqrt(E) + mask) v, and the attention weights (B, H, T, S) if `weights`.

    q is (B, H, T, E), k and v are (B, K, S, E); query head h reads kv head h K // H. The weights need the slower eager
    implementation, since PyTorch's fused kernels do not return them.
    """
    if weights:
        return _eager(q, k, v, mask, dropout)
    grouped = bool(q.shape[1] != k.shape[1])  # torch.jit.trace makes sizes tensors
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask.allowed, dropout_p=dropout, is_causal=mask.causal, enable_gqa=grouped
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
