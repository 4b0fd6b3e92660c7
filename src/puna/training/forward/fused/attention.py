"""Causal attention within documents, whose tokens follow each other without padding, and its gradients.

Documents of similar length are padded on the right to a common length and computed together: causal order keeps padding
out of the results. Scores are computed again in the backward pass, for a block of queries at a time.

Legend: T tokens, H heads, K kv heads, G = H / K, E head width, B documents, L their padded length, Q queries of a
block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from puna.native import training as native
from puna.training.forward.fused.products import product_dtype
from puna.training.forward.fused.uniform import UniformAttention

QUERIES = 256
"""Queries of a block."""

WASTE = 1.25
"""Documents are padded together if the longest has at most this many times the tokens of the shortest, or
`SHORT` tokens."""

SHORT = 32
GROUP_SCORES = 1 << 22
"""Maximum number of scores of a block, unless one document has more: 16 MB in float32."""

SCORE_COPIES = 4
"""Tensors of the size of the scores that exist at the same time: scores, weights and their gradients."""


@dataclass(frozen=True)
class Group:
    """Documents that are computed together: (B, L) tokens; `index` (B, L) is T, a row of zeros, for padding."""

    index: Tensor
    lengths: tuple[int, ...]


def group_documents(lengths: tuple[int, ...], heads: int) -> list[Group]:
    """Returns groups that cover all documents."""
    total, starts, start = sum(lengths), [], 0
    for length in lengths:
        starts.append(start)
        start += length
    order = sorted(range(len(lengths)), key=lambda document: lengths[document])
    groups: list[list[int]] = []
    for document in order:
        if groups and _fits(groups[-1], lengths, document, heads):
            groups[-1].append(document)
        else:
            groups.append([document])
    return [_group(members, lengths, starts, total) for members in groups]


def _fits(members: list[int], lengths: tuple[int, ...], document: int, heads: int) -> bool:
    shortest, length = lengths[members[0]], lengths[document]
    scores = (len(members) + 1) * heads * min(length, QUERIES) * length
    return length <= max(WASTE * shortest, SHORT) and scores <= GROUP_SCORES


def _group(members: list[int], lengths: tuple[int, ...], starts: list[int], total: int) -> Group:
    own = tuple(lengths[document] for document in members)
    offset = torch.arange(max(own))
    start = torch.tensor([starts[document] for document in members])[:, None]
    return Group(torch.where(offset < torch.tensor(own)[:, None], start + offset, total), own)


class Attention(Protocol):
    """Causal attention within documents."""

    @property
    def heads(self) -> int:
        """Number of query heads, H."""
        ...

    @property
    def kv_heads(self) -> int:
        """Number of kv heads, K."""
        ...

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the attention, (T, H E), of rotated queries, rotated keys and values, (T, (H + 2 K) E).

        Also returns a tensor that `backward` needs.
        """
        ...

    def backward(self, g: Tensor, qkv: Tensor, out: Tensor, kept: Tensor) -> Tensor:
        """Returns the gradient of qkv, (T, (H + 2 K) E), from that of the attention, (T, H E)."""
        ...


def attention_for(dtype: torch.dtype, lengths: tuple[int, ...], heads: int, kv_heads: int, width: int) -> Attention:
    """Returns the fastest implementation for a type on this processor."""
    chosen = attention_class(dtype, width, len(set(lengths)) == 1)
    if chosen is NativeAttention:
        return NativeAttention(heads, kv_heads, width, lengths)
    if chosen is UniformAttention:
        return UniformAttention(heads, kv_heads, width, (len(lengths), lengths[0]))
    return GroupedAttention(heads, kv_heads, width, tuple(group_documents(lengths, heads)))


def attention_class(dtype: torch.dtype, width: int, is_uniform: bool) -> type[Attention]:
    """Returns the fastest implementation for a type on this processor.

    Args:
        width: of a head.
        is_uniform: whether all documents of a pass have the same length.
    """
    if dtype == torch.bfloat16 and width % 16 == 0 and native.has_attention():
        return NativeAttention
    return UniformAttention if product_dtype(dtype) == torch.float32 and is_uniform else GroupedAttention


@dataclass(frozen=True)
class NativeAttention:
    """Attention in the native library, for contiguous bfloat16 matrices."""

    heads: int
    kv_heads: int
    width: int
    lengths: tuple[int, ...]

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        out = qkv.new_empty(len(qkv), self.heads * self.width)
        lse = torch.empty(self.heads * len(qkv))
        self._call(qkv, out, lse)
        return out, lse

    def backward(self, g: Tensor, qkv: Tensor, out: Tensor, kept: Tensor) -> Tensor:  # noqa: D102
        result = torch.empty_like(qkv)
        self._call(qkv, out, kept, g, result)
        return result

    def _call(self, qkv: Tensor, out: Tensor, lse: Tensor, *gradients: Tensor) -> None:
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        shape = (self.heads, self.kv_heads, self.width)
        native.attention(qkv, out, lse, lengths, len(lengths), shape, torch.get_num_threads(), *gradients)


@dataclass(frozen=True)
class GroupedAttention:
    """Attention in PyTorch, in float32, over groups of documents.

    Attributes:
        heads, kv_heads, width: H, K, E.
        groups: cover all tokens.
    """

    heads: int
    kv_heads: int
    width: int
    groups: tuple[Group, ...]

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        out = qkv.new_empty(len(qkv) + 1, self.heads * self.width)
        for group in self.groups:
            q, k, v = self._split(qkv, group)
            parts = [
                self._weights(q, k, begin, end) @ v[:, :end] for begin, end in _blocks(q.shape[2])
            ]  # (B K, G Q, E)
            self._scatter(out, group, self._joined(parts, q))
        return out[:-1], qkv.new_empty(0)

    def backward(self, g: Tensor, qkv: Tensor, out: Tensor, kept: Tensor) -> Tensor:  # noqa: D102
        result = qkv.new_empty(len(qkv) + 1, qkv.shape[1])
        for group in self.groups:
            q, k, v = self._split(qkv, group)
            (gradient,) = self._heads(g, group, (self.heads,))
            gk, gv = torch.zeros_like(k), torch.zeros_like(v)
            parts = []
            for begin, end in _blocks(q.shape[2]):
                weights, rows = self._weights(q, k, begin, end), gradient[:, :, begin:end].flatten(1, 2)
                gv[:, :end].baddbmm_(weights.transpose(1, 2), rows)
                gradients = torch._softmax_backward_data(rows @ v[:, :end].transpose(1, 2), weights, -1, torch.float32)
                gradients.mul_(self.width**-0.5)
                parts.append(gradients @ k[:, :end])
                gk[:, :end].baddbmm_(gradients.transpose(1, 2), q[:, :, begin:end].flatten(1, 2))
            kv = [x.view(len(group.lengths), self.kv_heads, -1, self.width).transpose(1, 2) for x in (gk, gv)]
            self._scatter(result, group, torch.cat((self._joined(parts, q), *kv), dim=2))
        return result[:-1]

    def _split(self, qkv: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q (B K, G, L, E), k and v (B K, L, E), all float32."""
        q, k, v = self._heads(qkv, group, (self.heads, self.kv_heads, self.kv_heads))
        return q, k[:, 0], v[:, 0]

    def _heads(self, x: Tensor, group: Group, heads: tuple[int, ...]) -> list[Tensor]:
        """Returns each part of x, (T, heads E), as (B K, heads / K, L, E) float32, with zeros for padding."""
        rows = x.new_zeros(*group.index.shape, x.shape[1])
        inside = group.index < len(x)
        rows[inside] = x[group.index[inside]]
        parts = rows.unflatten(2, (-1, self.width)).transpose(1, 2).split(heads, dim=1)  # type: ignore[no-untyped-call]
        return [
            part.float().reshape(-1, part.shape[1] // self.kv_heads, part.shape[2], self.width) for part in parts
        ]  # each (B, heads, L, E) is split into K groups of heads

    def _weights(self, q: Tensor, k: Tensor, begin: int, end: int) -> Tensor:
        """Returns the attention weights, (B K, G Q, end), of the queries from begin to end."""
        scores = (q[:, :, begin:end].flatten(1, 2) @ k[:, :end].transpose(1, 2)).mul_(self.width**-0.5)
        block = scores.unflatten(1, (-1, end - begin))  # type: ignore[no-untyped-call]
        block += torch.full((end - begin, end), float("-inf")).triu_(begin + 1)
        return scores.softmax(-1)

    def _joined(self, parts: list[Tensor], q: Tensor) -> Tensor:
        """Returns blocks of results, (B K, G Q, E) each, as (B, L, H, E)."""
        group = q.shape[1]
        x = torch.cat([part.unflatten(1, (group, -1)) for part in parts], dim=2)  # type: ignore[no-untyped-call]
        return x.reshape(-1, self.heads, x.shape[2], self.width).transpose(1, 2)

    @staticmethod
    def _scatter(out: Tensor, group: Group, rows: Tensor) -> None:
        """Writes rows, (B, L, heads, E), to their tokens; those of padding to the last row of `out`."""
        out[group.index.flatten()] = rows.flatten(2).flatten(0, 1).to(out.dtype)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, length, QUERIES):
        yield begin, min(begin + QUERIES, length)
