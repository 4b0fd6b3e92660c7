"""Decoders of the formats whose values are points of a grid: iq1, iq2 and iq3. See `puna.formats.decoders`.

A block has 256 values. Indices of a grid's points determine the magnitudes. In iq2 and iq3, each value has a sign bit;
in iq1, the points have signs, and a bit per group of values adds or subtracts 1/8. Groups of 16 or 32 values share a
small integer scale, which is multiplied by the block's float16 `d`. Sub-blocks have 32 values.
"""

# ruff: noqa: D103 (the docstring above describes every function below)

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from puna.formats.decoders import Bytes, Floats, block_fields, halves, two_nibbles
from puna.formats.grids import grid

Index = NDArray[np.integer]

_MAGNITUDES = {
    "iq1": (-1, 0, 1),
    "iq2_xxs": (8, 25, 43), "iq2_xs": (8, 25, 43), "iq2_s": (8, 25, 43),
    "iq3_xxs": (4, 12, 20, 28, 36, 44, 52, 62), "iq3_s": (1, 3, 5, 7, 9, 11, 13, 15),
}  # fmt: skip
"""The numbers that the coordinates of a grid's points select; the numbers of iq1 have signs."""

_SEVEN_SIGNS = np.array([bits | (bits.bit_count() & 1) << 7 for bits in range(128)], np.uint8)
"""The eight sign bits for each value of the seven stored bits: the last bit makes the number of set bits even."""

_SIGNS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, np.float32(-1), np.float32(1))
"""Factors of eight values by their eight sign bits, lowest bit first; a bit of 1 means a negative value."""


@cache
def _points(name: str) -> Floats:
    """Returns the values of a grid's points, (points, coordinates)."""
    points: Floats = np.array(_MAGNITUDES[name], np.float32)[grid(name)]
    return points


def _signed(name: str, indices: Index, signs: Bytes, scale: Floats) -> Floats:
    """Returns scale * magnitude * sign: indices (n, points), signs (n, 32), scale (n, groups) -> (n, 256)."""
    groups = (len(signs), scale.shape[1], -1)
    values: Floats = scale[:, :, None] * _points(name)[indices].reshape(groups) * _SIGNS[signs].reshape(groups)
    return values.reshape(-1, 256)


def _seven_signs(words: NDArray[np.uint32]) -> Bytes:
    """Unpacks four times seven sign bits from each word, lowest bits first: (n, 8) -> (n, 32)."""
    seven = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    signs: Bytes = _SEVEN_SIGNS[seven].reshape(len(words), 32)
    return signs


_IQ2_XXS = np.dtype([("d", "<f2"), ("parts", [("q", "u1", 4), ("signs", "<u4")], 8)])
_IQ2_XS = np.dtype([("d", "<f2"), ("q", "<u2", 32), ("scales", "u1", 8)])
_IQ2_S = np.dtype([("d", "<f2"), ("q", "u1", 32), ("signs", "u1", 32), ("high", "u1", 8), ("scales", "u1", 8)])
_IQ3_XXS = np.dtype([("d", "<f2"), ("q", "u1", 64), ("signs", "<u4", 8)])
_IQ3_S = np.dtype([("d", "<f2"), ("q", "u1", 64), ("high", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])
_IQ1_S = np.dtype([("d", "<f2"), ("q", "u1", 32), ("high", "<u2", 8)])
_IQ1_M = np.dtype([("q", "u1", 32), ("high", "u1", 16), ("scales", "<u2", 4)])


def _scale_plus_half(d: NDArray[np.float16], scales: Index, factor: float) -> Floats:
    """Returns d * (0.5 + scale) * factor, in ggml's order of operations: (n,) and (n, groups) -> (n, groups)."""
    scale: Floats = halves(d) * (np.float32(0.5) + scales.astype(np.float32)) * np.float32(factor)
    return scale


def unpack_iq2_xxs(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ2_XXS)
    words = b["parts"]["signs"]
    scale = _scale_plus_half(b["d"], words >> 28, 0.25)
    return _signed("iq2_xxs", b["parts"]["q"], _seven_signs(words), scale)


def unpack_iq2_xs(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ2_XS)
    scale = _scale_plus_half(b["d"], two_nibbles(b["scales"]), 0.25)
    return _signed("iq2_xs", b["q"] & 511, _SEVEN_SIGNS[b["q"] >> 9], scale)


def unpack_iq2_s(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ2_S)
    high = b["high"][:, :, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    scale = _scale_plus_half(b["d"], two_nibbles(b["scales"]), 0.25)
    return _signed("iq2_s", _join(b["q"], high), b["signs"], scale)


def unpack_iq3_xxs(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ3_XXS)
    scale = _scale_plus_half(b["d"], b["signs"] >> 28, 0.5)
    return _signed("iq3_xxs", b["q"], _seven_signs(b["signs"]), scale)


def unpack_iq3_s(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ3_S)
    high = b["high"][:, :, None] >> np.arange(8, dtype=np.uint8) & 1
    scale = halves(b["d"]) * (1 + 2 * two_nibbles(b["scales"])).astype(np.float32)
    return _signed("iq3_s", _join(b["q"], high), b["signs"], scale)


def unpack_iq1_s(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ1_S)
    scale = halves(b["d"]) * (2 * (b["high"] >> 12 & 7) + 1).astype(np.float32)
    high = b["high"][:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7
    return _shifted(_join(b["q"], high), b["high"] >> 15, scale)


def unpack_iq1_m(blocks: Bytes) -> Floats:
    b = block_fields(blocks, _IQ1_M)
    # The top four bits of the four words of scales, joined, are the float16 d.
    d = np.bitwise_or.reduce(b["scales"] >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1).view(np.float16)
    scales = (b["scales"][:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    high = two_nibbles(b["high"])  # for each point, three bits of its index and the sign of its shift
    scale = halves(d) * (2 * scales + 1).astype(np.float32)
    return _shifted(_join(b["q"], high & 7), high >> 3, scale)


def _join(low: Bytes, high: Index) -> Index:
    """Returns low | high << 8, with `low` (n, points) and `high` of any shape with as many elements."""
    return low | high.astype(np.uint16).reshape(low.shape) << 8


def _shifted(indices: Index, down: Index, scale: Floats) -> Floats:
    """Returns scale * (coordinate + or - 1/8) of points of iq1's grid.

    Args:
        indices: (n, 32).
        down: (n, groups of points): 1 where 1/8 is subtracted.
        scale: (n, groups of values).
    """
    n = len(indices)
    shift = np.where(down == 0, np.float32(0.125), np.float32(-0.125))
    values = _points("iq1")[indices].reshape(n, down.shape[1], -1) + shift[:, :, None]
    scaled: Floats = scale[:, :, None] * values.reshape(n, scale.shape[1], -1)
    return scaled.reshape(n, 256)
