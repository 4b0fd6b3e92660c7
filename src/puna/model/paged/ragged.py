"""Attention of a ragged batch over pages: projections see all tokens as one row of the batch, attention sees groups.

Legend: N tokens of the batch, G chunks of a group, T tokens of each of them, S positions before them (padded to the
longest), H heads, K kv heads, E head width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.backend import PAGE, Chunk
from puna.model.attention import AttentionMask, Pair, build_mask
from puna.model.cache import KVCache
from puna.model.rope import LlamaRotaryEmbedding, Rope

LONGEST_GROUPED = 16
"""Chunks of more tokens attend alone: they keep a device busy, and padding would cost more than a call saves."""


@dataclass(frozen=True)
class Group:
    """Chunks of equal length that attend in one call.

    Attributes:
        rows: the group's tokens among those of the batch.
        chunks: number of chunks G.
        past: rows of the cache with the positions before the chunks, (G, S).
        slots: rows of the cache for the new tokens, (G * T).
    """

    rows: slice
    chunks: int
    past: Tensor
    slots: Tensor
    rope: Rope
    mask: AttentionMask

    def attend(self, q: Tensor, k: Tensor, v: Tensor, stored: Pair) -> Tensor:
        """Attends from the group's queries; stores its keys and values. q, k and v are those of the batch."""
        q, k, v = (part[0, :, self.rows].unflatten(1, (self.chunks, -1)).transpose(0, 1) for part in (q, k, v))  # type: ignore[no-untyped-call]
        keys, values = (part[self.past].transpose(1, 2) for part in stored)  # (G, K, S, E)
        out, _, new = self.rope.attend(q, k, v, (keys, values), self.mask, 0.0, False)  # (G, H, T, E)
        for part, extended in zip(stored, new, strict=True):
            part[self.slots] = extended[:, :, self.past.shape[1] :].transpose(1, 2).flatten(0, 1)  # (G * T, K, E)
        return out.transpose(0, 1).flatten(1, 2)  # (H, G * T, E)


@dataclass(frozen=True)
class RaggedRope:
    """The rotation of a ragged batch. It implements `Rope` for a batch of one row that contains all tokens."""

    groups: tuple[Group, ...]
    key_positions: None = None

    def attend(  # noqa: D102
        self, q: Tensor, k: Tensor, v: Tensor, past: Pair | None, mask: AttentionMask, dropout: float, weights: bool
    ) -> tuple[Tensor, Tensor | None, Pair]:
        assert past is not None, "the pages of the layer"
        out = torch.cat([group.attend(q, k, v, past) for group in self.groups], dim=1)  # (H, N, E)
        return out[None], None, past


def group_chunks(batch: Sequence[Chunk], by_length: bool) -> list[list[int]]:
    """Returns the indices of the chunks of each group; chunks with the same adapter are neighbours.

    The number of pages of a group's chunks differs by less than a factor of 2, and either all or none of them follow
    other positions. With frequencies by length, only chunks of one token are grouped, since the frequencies of all
    sequences of a call change at the same token (see `LengthRotation`).
    """
    longest = 1 if by_length else LONGEST_GROUPED
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, chunk in enumerate(batch):
        tokens = len(chunk.tokens)
        alone = index if tokens > longest else -1
        groups[tokens, len(chunk.pages).bit_length() if chunk.start else 0, alone].append(index)
    return [sorted(group, key=lambda index: batch[index].adapter) for group in groups.values()]


def ragged_rope(groups: Sequence[Sequence[Chunk]], rotary: LlamaRotaryEmbedding) -> RaggedRope:
    """Returns the rotation of a batch with the tokens of these groups, in this order."""
    return RaggedRope(tuple(_groups(groups, rotary)))


def _groups(groups: Sequence[Sequence[Chunk]], rotary: LlamaRotaryEmbedding) -> Iterator[Group]:
    device, row = rotary.inv_freq.device, 0
    for chunks in groups:
        count, tokens, longest = len(chunks), len(chunks[0].tokens), max(chunk.start for chunk in chunks)
        starts = np.array([[chunk.start] for chunk in chunks])  # (G, 1)
        new, before = starts + np.arange(tokens), np.arange(longest)[None]  # (G, T), (1, S)
        # A value that is masked must still be finite. Position 0 of the same sequence is, others may not be.
        past = cache_rows(chunks, np.where(before < starts, before, 0))
        positions = torch.from_numpy(new).to(device)
        cached = KVCache(positions=torch.from_numpy(before).to(device).expand(count, longest))
        rope = rotary(positions, cached, longest if count == 1 else None)
        padding = None
        if (starts < longest).any():
            allowed = np.pad(before < starts, ((0, 0), (0, tokens)), constant_values=True)
            padding = torch.from_numpy(allowed).to(device)  # (G, S + T)
        yield Group(
            slice(row, row + count * tokens),
            count,
            torch.from_numpy(past).to(device),
            torch.from_numpy(cache_rows(chunks, new).ravel()).to(device),
            rope,
            build_mask(padding, positions, longest, explicit=rope.key_positions is not None),
        )
        row += count * tokens


def cache_rows(chunks: Sequence[Chunk], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the rows of the cache, (G, n), of positions, (G, n)."""
    pages = [np.asarray(chunk.pages)[row // PAGE] for chunk, row in zip(chunks, positions, strict=True)]
    return np.stack(pages) * PAGE + positions % PAGE
