"""Triton kernels of `attend_pages`. PyTorch's packages for GPUs include Triton.

PyTorch's own kernels need the pages of all sequences copied into one tensor, and use one multiprocessor per row and
head, so that a single sequence leaves most of a GPU idle. Here a program reads part of the pages of one row and kv head
for all query heads of the group, and a second kernel merges the parts.

Legend: N rows, H heads, K kv heads, E head width, P pages, W columns of the table of pages.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from puna.backend import PAGE

_PROGRAMS = 256
"""The pages of a sequence are split until there are this many programs: about two per multiprocessor of an H100."""

_MOST_SPLITS = 64
"""Maximum number of splits. The merging kernel reads all of them at once."""

_LOG2_E = 1.4426950408889634
"""Scores are multiplied by this number, because powers of 2 are faster than powers of e."""


@triton.jit  # type: ignore[untyped-decorator]
def _attend_kernel(
    q: tl.tensor, keys: tl.tensor, values: tl.tensor, tables: tl.tensor, lengths: tl.tensor,
    out: tl.tensor, peaks: tl.tensor, sums: tl.tensor, scale: tl.tensor,
    row_stride: tl.constexpr, head_stride: tl.constexpr, width: tl.constexpr, kv_heads: tl.constexpr,
    group: tl.constexpr, e: tl.constexpr, page: tl.constexpr, splits: tl.constexpr, group_padded: tl.constexpr,
    e_padded: tl.constexpr,
) -> None:  # fmt: skip
    """Computes the unnormalised output, the maximum and the sum of exponentials of one split, row and kv head."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    pages = tl.cdiv(length, page)
    per_split = tl.cdiv(pages, splits)
    heads, column, token = tl.arange(0, group_padded), tl.arange(0, e_padded), tl.arange(0, page)
    valid = (heads < group)[:, None] & (column < e)[None, :]
    query_start = row * row_stride + (head * group + heads) * head_stride
    query = tl.load(q + query_start[:, None] + column[None, :], mask=valid, other=0.0)
    peak = tl.full((group_padded,), float("-inf"), tl.float32)
    total = tl.zeros((group_padded,), tl.float32)
    result = tl.zeros((group_padded, e_padded), tl.float32)
    for index in range(split * per_split, tl.minimum((split + 1) * per_split, pages)):
        number = tl.load(tables + row * width + index).to(tl.int64)
        start = ((number * page + token) * kv_heads + head) * e
        present = index * page + token < length
        key = tl.load(keys + start[None, :] + column[:, None], mask=present[None, :] & (column < e)[:, None], other=0.0)
        scores = tl.dot(query, key, input_precision="ieee") * scale  # base 2
        scores = tl.where(present[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        value = tl.load(
            values + start[:, None] + column[None, :], mask=present[:, None] & (column < e)[None, :], other=0.0
        )
        result = result * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        peak = new_peak
    at = ((row * kv_heads + head) * group + heads) * splits + split
    tl.store(out + at[:, None] * e + column[None, :], result, mask=valid)
    tl.store(peaks + at, peak, mask=heads < group)
    tl.store(sums + at, total, mask=heads < group)


@triton.jit  # type: ignore[untyped-decorator]
def _merge_kernel(
    out: tl.tensor, peaks: tl.tensor, sums: tl.tensor, merged: tl.tensor,
    e: tl.constexpr, splits: tl.constexpr, e_padded: tl.constexpr,
) -> None:  # fmt: skip
    """Merges the splits of one row and head; those without pages have a maximum of minus infinity."""
    row = tl.program_id(0)
    split, column = tl.arange(0, splits), tl.arange(0, e_padded)
    peak = tl.load(peaks + row * splits + split)
    factors = tl.exp2(peak - tl.max(peak, 0))
    total = tl.sum(factors * tl.load(sums + row * splits + split), 0)
    parts = tl.load(
        out + (row * splits + split)[:, None] * e + column[None, :], mask=(column < e)[None, :], other=0.0
    )  # (splits, E)
    result = tl.sum(parts * factors[:, None], 0) / total
    tl.store(merged + row * e + column, result.to(merged.dtype.element_ty), mask=column < e)


def launch(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    """Runs the kernels. Arguments and result are those of `puna.model.paged.attention.attend_pages`."""
    rows, heads, e = q.shape
    kv_heads, width = keys.shape[1], tables.shape[1]
    splits = 1
    while splits < min(_MOST_SPLITS, width) and rows * kv_heads * splits < _PROGRAMS:
        splits *= 2
    out = q.new_empty((rows * heads, splits, e), dtype=torch.float32)
    peaks, sums = (out.new_empty((rows * heads, splits)) for _ in range(2))
    merged = torch.empty((rows, heads, e), dtype=q.dtype, device=q.device)
    attend: Any = _attend_kernel[(rows, kv_heads, splits)]
    attend(
        q, keys, values, tables, lengths, out, peaks, sums, e**-0.5 * _LOG2_E,
        q.stride(0), q.stride(1), tables.stride(0), kv_heads, heads // kv_heads,
        e, PAGE, splits, max(16, triton.next_power_of_2(heads // kv_heads)), max(16, triton.next_power_of_2(e)),
        num_warps=4,
    )  # fmt: skip
    merge: Any = _merge_kernel[(rows * heads,)]
    merge(out, peaks, sums, merged, e, splits, triton.next_power_of_2(e), num_warps=2)
    return merged
