"""Decoders of block formats in PyTorch, for any device: the counterparts of `puna.formats.decoders`.

Each function maps packed blocks (n, bytes per block), uint8, to float32 values, (n, values per block). The order of
operations is that of `puna.formats.decoders`, which describes the layouts, so that the values are bit-identical.
"""

# ruff: noqa: D103 (the docstring above describes every function below)

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _half(blocks: Tensor, start: int) -> Tensor:
    """Widens the float16 number at byte `start` of each block: (n, 1)."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _signed(blocks: Tensor, start: int, end: int) -> Tensor:
    return blocks[:, start:end].contiguous().view(torch.int8).float()


def _nibbles(packed: Tensor, run: int) -> Tensor:
    """Unpacks 4-bit values, (n, k) -> (n, 2 k): per `run` bytes, the low nibbles come first."""
    runs = packed.unflatten(1, (-1, 1, run))  # type: ignore[no-untyped-call]
    nibbles: Tensor = torch.cat((runs & 15, runs >> 4), dim=2).flatten(1)
    return nibbles


def _bits(packed: Tensor, width: int, run: int) -> Tensor:
    """Unpacks `width`-bit values, (n, k) -> (n, k / run, 8 / width, run): per `run` bytes, their lowest bits first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)[:, None]
    bits: Tensor = packed.unflatten(1, (-1, 1, run)) >> shifts & (1 << width) - 1  # type: ignore[no-untyped-call]
    return bits


def _scale_parts(scale: Tensor, q: Tensor, minimum: Tensor | None = None) -> Tensor:
    """Multiplies equal parts of the values q, (n, 256), by scales, (n, parts), and subtracts minimums, (n, parts)."""
    parts = scale[:, :, None] * q.view(len(q), scale.shape[1], -1)
    return (parts if minimum is None else parts - minimum[:, :, None]).flatten(1)


def unpack_q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).float() - 8)


def unpack_q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).float() + _half(blocks, 2)


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    bits = _bits(high, 1, 1).flatten(1)  # (n, 32), bit i of byte j is value 8 j + i
    return (_nibbles(low, 16) | bits << 4).float()


def unpack_q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_five_bits(blocks[:, 2:6], blocks[:, 6:]) - 16)


def unpack_q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _five_bits(blocks[:, 4:8], blocks[:, 8:]) + _half(blocks, 2)


def unpack_q8_0(blocks: Tensor) -> Tensor:
    return _signed(blocks, 2, 34) * _half(blocks, 0)


def unpack_q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16]
    scale, minimum = _half(blocks, 80) * (scales & 15).float(), _half(blocks, 82) * (scales >> 4).float()
    return _scale_parts(scale, _bits(blocks[:, 16:80], 2, 32).flatten(1).float(), minimum)


def unpack_q3_k(blocks: Tensor) -> Tensor:
    packed = blocks[:, 96:108]
    scales = (_nibbles(packed[:, :8], 8) | _bits(packed[:, 8:], 2, 4).flatten(1) << 4).float() - 32  # (n, 16)
    third = _bits(blocks[:, :32], 1, 32).flatten(1)  # (n, 256); 4 is subtracted where it is clear
    q = _bits(blocks[:, 32:96], 2, 32).flatten(1).float() - (4 - (third << 2)).float()
    return _scale_parts(_half(blocks, 108) * scales, q)


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat((a & 63, (c & 15) | (a >> 6 << 4)), dim=1)
    minimums = torch.cat((b & 63, (c >> 4) | (b >> 6 << 4)), dim=1)
    return scales.float(), minimums.float()


def unpack_q4_k(blocks: Tensor) -> Tensor:
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    q = _nibbles(blocks[:, 16:], 32).float()
    return _scale_parts(_half(blocks, 0) * scales, q, _half(blocks, 2) * minimums)


def unpack_q5_k(blocks: Tensor) -> Tensor:
    scales, minimums = _six_bit_scales(blocks[:, 4:16])
    fifth = _bits(blocks[:, 16:48], 1, 32).flatten(1)  # (n, 256)
    q = (_nibbles(blocks[:, 48:], 32) | fifth << 4).float()
    return _scale_parts(_half(blocks, 0) * scales, q, _half(blocks, 2) * minimums)


def unpack_q6_k(blocks: Tensor) -> Tensor:
    q = (_nibbles(blocks[:, :128], 64) | _bits(blocks[:, 128:192], 2, 32).flatten(1) << 4).float() - 32
    return _scale_parts(_half(blocks, 208) * _signed(blocks, 192, 208), q)


UNPACK: dict[str, Callable[[Tensor], Tensor]] = {
    "q4_0": unpack_q4_0,
    "q4_1": unpack_q4_1,
    "q5_0": unpack_q5_0,
    "q5_1": unpack_q5_1,
    "q8_0": unpack_q8_0,
    "q2_K": unpack_q2_k,
    "q3_K": unpack_q3_k,
    "q4_K": unpack_q4_k,
    "q5_K": unpack_q5_k,
    "q6_K": unpack_q6_k,
}
"""The decoder of each format that a model can keep packed, by ggml's name."""
