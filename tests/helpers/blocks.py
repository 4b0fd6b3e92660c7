"""Random blocks of the weight formats, with chosen scales."""

from __future__ import annotations

import hashlib

import numpy as np

from puna.formats.blocks import BlockFormat

SCALE_OFFSETS = {
    "q8_0": [0],
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "iq4_nl": [0],
    "q2_K": [80, 82],
    "q3_K": [108],
    "q4_K": [0, 2],
    "q5_K": [0, 2],
    "q6_K": [208],
    "iq4_xs": [0],
    "iq3_s": [0],
    "iq3_xxs": [0],
    "iq2_s": [0],
    "iq2_xs": [0],
    "iq2_xxs": [0],
    "iq1_m": [],
    "iq1_s": [0],
    "tq2_0": [64],
    "tq1_0": [52],
    "mxfp4": [],
}
"""Offsets of a block's float16 scales, in bytes. iq1_m divides its scale among four words, mxfp4 has an exponent."""

SPREAD = {
    "q8_0": 74,
    "q4_0": 4.6,
    "q4_1": 4.6,
    "q5_0": 9.2,
    "q5_1": 9.2,
    "iq4_nl": 66,
    "q2_K": 13,
    "q3_K": 42,
    "q4_K": 250,
    "q5_K": 500,
    "q6_K": 1360,
    "iq4_xs": 1250,
    "iq3_s": 140,
    "iq3_xxs": 143,
    "iq2_s": 56,
    "iq2_xs": 56,
    "iq2_xxs": 53,
    "iq1_m": 7.2,
    "iq1_s": 7.2,
    "tq2_0": 1.1,
    "tq1_0": 0.82,
    "mxfp4": 5.8,
}
"""Approximate standard deviation of a random block's values, divided by its first scale."""

CENTRE = {"q4_1": -7.5, "q5_1": -15.5, "q2_K": 1.5, "q4_K": 7.5, "q5_K": 15.5}
"""Ratio of a block's second scale, that of minimums, to the first, for values whose mean is zero as in real models."""


def set_scales(name: str, blocks: np.ndarray, scale: np.ndarray) -> None:
    """Writes a scale to each block, and a proportional second scale: blocks (n, bytes), scale (n,) float64."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for offset, factor in zip(SCALE_OFFSETS[name], (1.0, CENTRE.get(name, 0.0)), strict=False):
            blocks[:, offset : offset + 2] = (scale * factor).astype("<f2").view(np.uint8).reshape(-1, 2)
        if name == "iq1_m":
            bits = scale.astype(np.float16).view(np.uint16)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
            blocks[:, 49::2] = blocks[:, 49::2] & 15 | bits.astype(np.uint8) << 4
        if name == "mxfp4":
            exponent = np.nan_to_num(np.round(np.log2(np.abs(scale))))
            blocks[:, 0] = np.clip(exponent + 128, 0, 255)


EXTREME_SCALES = (0.0, -0.0, 2**-24, -(2**-24), 2**-14, 65504.0, -65504.0, np.inf, -np.inf, np.nan, 1.0, -1.0)


def extreme_blocks(form: BlockFormat, count: int) -> np.ndarray:
    """Returns reproducible blocks in which every extreme scale (mxfp4: every exponent) occurs: (count, bytes)."""
    digest = hashlib.shake_256(form.name.encode()).digest(count * form.bytes)
    blocks = np.frombuffer(digest, np.uint8).reshape(count, form.bytes).copy()
    if form.name == "mxfp4":
        blocks[:256, 0] = np.arange(256)
    elif form.values > 1:
        set_scales(form.name, blocks[: len(EXTREME_SCALES)], np.array(EXTREME_SCALES))
    return blocks


def random_blocks(name: str, size: int, count: int, spread: float, random: np.random.Generator) -> np.ndarray:
    """Returns blocks of `size` bytes whose values have about the standard deviation `spread`: (count, size)."""
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    set_scales(name, blocks, random.uniform(0.5, 1.5, count) * spread / SPREAD[name])
    return blocks
