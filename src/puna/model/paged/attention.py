"""Attention of decoding rows, one token each, to keys and values in pages.

Legend: N rows, H heads, K kv heads, E head width, P pages, W columns of the table of pages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from puna.backend import PAGE
from puna.model.attention import AttentionMask, Pair, attend


def attend_pages(q: Tensor, stored: Pair, tables: Tensor, lengths: Tensor) -> Tensor:
    """Returns the output, (N, H, E), of queries q, (N, H, E), that attend to all positions of their sequences.

    Args:
        q: the rotated queries.
        stored: keys and values, each (P * PAGE, K, E), with the new tokens' ones.
        tables: the pages of each row, int32 (N, W).
        lengths: number of positions of each row, at least 1, int32 (N).
    """
    output: Tensor = _attend_pages(q, *stored, tables, lengths)
    return output


# For torch.compile, this is one operation: it would otherwise trace the launch of the kernels.
@torch.library.custom_op("puna::attend_pages", mutates_args=(), device_types="cpu")
def _attend_pages(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    """The implementation in PyTorch, with which tests compare the kernels."""
    tables = tables[:, : -(-int(lengths.max()) // PAGE)]
    positions = torch.arange(tables.shape[1] * PAGE)  # (S)
    present = positions < lengths[:, None]  # (N, S)
    rows = tables.long().repeat_interleave(PAGE, dim=1) * PAGE + positions % PAGE
    rows = torch.where(present, rows, rows[:, :1])  # values of other positions may not be finite
    k, v = (part[rows].transpose(1, 2) for part in (keys, values))  # (N, K, S, E)
    out, _ = attend(q[:, :, None], k, v, AttentionMask(present[:, None, None]), 0.0, False)
    return out[:, :, 0].contiguous()


@_attend_pages.register_kernel("cuda")
def _on_gpu(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    from puna.model.paged.kernels import launch

    return launch(q, keys, values, tables, lengths)


@_attend_pages.register_fake
def _on_meta(q: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)
