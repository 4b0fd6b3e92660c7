"""Rotary position embeddings (Su et al., RoFormer, arXiv:2104.09864), in the half-split layout.

Legend: B batch, T tokens, S keys (cached and new), H heads, K kv heads, E head width.

A head is E/2 pairs (x[i], x[i + E/2]); pair i of the token at position p is rotated by the angle p * inv_freq[i].
`puna.config.frequencies` defines inv_freq. Angles and rotations are computed in float32 for every dtype, as in Meta's
code. There are two cases:

* default, linear, yarn, llama3: the frequencies are fixed. Keys are rotated once and cached rotated (`Rotation`).
* dynamic, longrope: the frequencies depend on the length of the context: the number of tokens up to the query. The
  query and all its keys are rotated with them, so keys are cached unrotated (`LengthRotation`, `QueryRotation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.config.frequencies import RotaryFrequencies
from puna.model.attention import AttentionMask, Pair, attend, extend
from puna.model.cache import KVCache
from puna.model.checks import is_traced

Angles = tuple[Tensor, Tensor]
"""cos and sin, each (B, 1, tokens, E/2), float32."""


class Rope(Protocol):
    """The rotation of the tokens of one forward pass, the same in every layer."""

    @property
    def key_positions(self) -> Tensor | None:
        """(B, S), which the cache must hold; None if keys are cached rotated."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: Pair | None, mask: AttentionMask, dropout: float, weights: bool
    ) -> tuple[Tensor, Tensor | None, Pair]:
        """Attends from rotated queries to rotated cached and new keys.

        q is (B, H, T, E); k and v are (B, K, T, E); all are unrotated. `past` holds a layer's cached keys and values.
        Returns what `attend` returns, and the keys and values to cache.
        """
        ...


@dataclass(frozen=True)
class Rotation:
    """Fixed frequencies: the angles of the new tokens, for their queries and their keys."""

    angles: Angles
    key_positions: None = None  # cached keys are rotated already

    def __iter__(self) -> Iterator[Tensor]:
        """Yields cos and sin for all of a head, (B, T, E) each: the form of transformers' position embeddings."""
        return (torch.cat((half, half), dim=-1)[:, 0] for half in self.angles)

    def attend(  # noqa: D102
        self, q: Tensor, k: Tensor, v: Tensor, past: Pair | None, mask: AttentionMask, dropout: float, weights: bool
    ) -> tuple[Tensor, Tensor | None, Pair]:
        k, v = extend(past, rotate(k, self.angles), v)  # (B, K, S, E)
        return *attend(rotate(q, self.angles), k, v, mask, dropout, weights), (k, v)


@dataclass(frozen=True)
class LengthRotation:
    """Frequencies by length: for each run of queries with equal frequencies, the angles of its queries and all keys."""

    runs: tuple[tuple[slice, Tensor], ...]  # slice of the T queries, and their inv_freq (B, 1, E/2)
    positions: Tensor  # (B, T)
    key_positions: Tensor  # (B, S)
    scaling: float

    def __iter__(self) -> Iterator[tuple[slice, Angles, Angles]]:
        """Yields (slice of the queries, their angles, angles of all keys); lazily, since the keys' angles are large."""
        for queries, inv_freq in self.runs:
            yield (
                queries,
                angles(self.positions[:, queries], inv_freq, self.scaling),
                angles(self.key_positions, inv_freq, self.scaling),
            )

    def attend(  # noqa: D102
        self, q: Tensor, k: Tensor, v: Tensor, past: Pair | None, mask: AttentionMask, dropout: float, weights: bool
    ) -> tuple[Tensor, Tensor | None, Pair]:
        k, v = extend(past, k, v)  # (B, K, S, E), keys unrotated
        parts = [
            attend(rotate(q[:, :, part], q_angles), rotate(k, k_angles), v, mask.queries(part), dropout, weights)
            for part, q_angles, k_angles in self
        ]
        out = torch.cat([part[0] for part in parts], dim=2)  # (B, H, T, E)
        return out, torch.cat([part[1] for part in parts if part[1] is not None], dim=2) if weights else None, (k, v)


@dataclass(frozen=True)
class QueryRotation:
    """Frequencies by length, for graphs, which cannot depend on the values of positions: each query is a batch row.

    The keys are rotated once for each query, which needs the memory of T times the keys.
    """

    inv_freq: Tensor  # (B, T, E/2)
    positions: Tensor  # (B, T)
    key_positions: Tensor  # (B, S)
    scaling: float

    def attend(  # noqa: D102
        self, q: Tensor, k: Tensor, v: Tensor, past: Pair | None, mask: AttentionMask, dropout: float, weights: bool
    ) -> tuple[Tensor, Tensor | None, Pair]:
        k, v = extend(past, k, v)  # (B, K, S, E), keys unrotated
        batch, heads, tokens, width = q.shape
        inv_freq = self.inv_freq.flatten(0, 1)[:, None]  # (B * T, 1, E/2)
        q_angles = angles(self.positions.reshape(-1, 1), inv_freq, self.scaling)
        k_angles = angles(self.key_positions.repeat_interleave(tokens, 0), inv_freq, self.scaling)
        out, attention = attend(
            rotate(q.transpose(1, 2).flatten(0, 1)[:, :, None], q_angles),  # (B * T, H, 1, E)
            rotate(k.repeat_interleave(tokens, 0), k_angles),  # (B * T, K, S, E)
            v.repeat_interleave(tokens, 0),
            mask.by_query(batch),
            dropout,
            weights,
        )
        out = out.view(batch, tokens, heads, width).transpose(1, 2)  # (B, H, T, E)
        if attention is not None:
            attention = attention.view(batch, tokens, heads, -1).transpose(1, 2)  # (B, H, T, S)
        return out, attention, (k, v)


def angles(positions: Tensor, inv_freq: Tensor, scaling: float) -> Angles:
    """Returns the scaled cos and sin of positions, (B, tokens), times inv_freq, (E/2) or (B, 1, E/2)."""
    phase = (positions[:, :, None].float() * inv_freq)[:, None]  # (B, 1, tokens, E/2)
    return phase.cos() * scaling, phase.sin() * scaling


def rotate(x: Tensor, cos_and_sin: Angles) -> Tensor:
    """Returns x, (B, heads, tokens, E), with rotated pairs."""
    cos, sin = cos_and_sin
    first, second = x.float().chunk(2, dim=-1)  # (B, heads, tokens, E/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)  # shape of x


def _context_lengths(positions: Tensor, start: int | None, attention_mask: Tensor | None) -> Tensor:
    """Returns the number of tokens up to each new token, (B or 1, T): its position + 1, but at most those in the mask.

    Outside graphs, the numbers are read if T is above 1. That waits for an accelerator unless they are on the CPU.
    """
    tokens = positions.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        count = attention_mask.to(positions.device).long().cumsum(dim=1)[:, -tokens:]
        return torch.minimum(count, positions + 1).clamp(min=1)
    if start is None or is_traced():
        return positions + 1
    return torch.arange(start + 1, start + 1 + tokens)[None]


class LlamaRotaryEmbedding(nn.Module):
    """Computes from positions the angles that queries and keys are rotated by."""

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        table = RotaryFrequencies(config)
        self.original, self.scaling, self.by_length = table.original, table.scale, table.by_length
        self.theta: float = config.rope_parameters["rope_theta"]
        self.factor: float = config.rope_parameters.get("factor", 1.0)
        fixed = table.fixed if table.long is None else np.stack([table.fixed, table.long])  # (E/2) or (2, E/2)
        self.register_buffer("inv_freq", torch.from_numpy(fixed), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LlamaRotaryEmbedding:
        """Moves the frequencies with the model, but keeps them in float32: `model.to(bfloat16)` must not round them."""
        float32 = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = float32.to(self.inv_freq.device)
        return self

    def forward(
        self, positions: Tensor, cache: KVCache, start: int | None = None, attention_mask: Tensor | None = None
    ) -> Rope:
        """Returns the rotation of new tokens at `positions`, (B, T), which follow the tokens in the cache.

        Args:
            positions: (B, T).
            cache: the cached tokens.
            start: set if every row of `positions` is start, start + 1, ...
            attention_mask: the argument of the model; dynamic and longrope do not count its padding.
        """
        if not self.by_length:
            return Rotation(angles(positions, self.inv_freq, self.scaling))
        keys = torch.cat((cache.token_positions(positions), positions), dim=1)  # (B, S)
        lengths = _context_lengths(positions, start, attention_mask)  # (B or 1, T)
        if is_traced():
            inv_freq = self._for_length(lengths[:, :, None])  # (B, T, E/2)
            return QueryRotation(inv_freq, positions, keys, self.scaling)
        runs = tuple(
            (part, self._for_length(lengths[:, part][:, :1, None].to(positions.device))) for part in self._runs(lengths)
        )
        return LengthRotation(runs, positions, keys, self.scaling)

    def _runs(self, lengths: Tensor) -> Iterator[slice]:
        """Splits the T queries wherever the frequencies of any row change; `lengths` is (B or 1, T)."""
        tokens = lengths.shape[1]
        edges = [0, tokens]
        if tokens > 1:
            # Queries in the same group have equal frequencies.
            group = lengths > self.original if self.inv_freq.dim() == 2 else lengths.clamp(min=self.original)
            edges[1:1] = ((group[:, 1:] != group[:, :-1]).any(dim=0).nonzero().flatten() + 1).tolist()
        for first, end in pairwise(edges):
            yield slice(first, end)

    def _for_length(self, length: Tensor) -> Tensor:
        """Returns inv_freq, (B, T, E/2), for contexts of `length`, (B, T, 1): `RotaryFrequencies` for tensors."""
        if self.inv_freq.dim() == 2:
            short, long = self.inv_freq
            return torch.where(length > self.original, long, short)
        width = 2 * self.inv_freq.shape[-1]
        excess = (length - self.original).clamp(min=0).float() / self.original
        base = self.theta * (1 + self.factor * excess) ** (width / max(width - 2, 1))
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=length.device) / width
        inv_freq: Tensor = 1.0 / base**exponents
        return inv_freq
