"""Random weights in every format, for tests of the native runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from puna.formats.blocks import FORMATS, BlockFormat

SCALES = {
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
}
"""Where the float16 scales of a block lie."""

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
}
"""About the standard deviation of what a random block's numbers give before its float16 scales."""

CENTRE = {"q4_1": -7.5, "q5_1": -15.5, "q2_K": 1.5, "q4_K": 7.5, "q5_K": 15.5}
"""The second scale over the first that puts the values around zero, where those of real models lie."""


@dataclass
class Packed:
    """A tensor as the backend reads it."""

    format: BlockFormat
    shape: tuple[int, ...]
    data: np.ndarray
    order: np.ndarray | None = None

    def to_float32(self) -> np.ndarray:
        rows = self.data.reshape(self.shape[0], -1)
        rows = rows if self.order is None else rows[self.order]
        return self.format.decode(np.ascontiguousarray(rows).reshape(-1)).reshape(self.shape)

    def release(self) -> None:
        pass


def packed(name: str, values: np.ndarray, random: np.random.Generator, *, shuffled: bool = False) -> Packed:
    """Values packed as floats; for block formats random blocks of about their spread."""
    block = FORMATS[name]
    if name == "f32":
        data = values.astype(np.float32)
    elif name == "f16":
        data = values.astype(np.float16)
    elif name == "bf16":
        data = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    else:
        count = values.size // block.values
        data = random.integers(0, 256, (count, block.bytes), dtype=np.uint8)
        scale = random.uniform(0.5, 1.5, (count, 1)) * values.std() / SPREAD[name]
        for offset, factor in zip(SCALES[name], (1.0, CENTRE.get(name, 0.0)), strict=False):
            data[:, offset : offset + 2] = (scale * factor).astype(np.float16).view(np.uint8)
    order = random.permutation(len(values)) if shuffled else None
    return Packed(block, values.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8), order)


def model_in(name: str, state: dict[str, np.ndarray], seed: int = 5) -> dict[str, Packed]:
    """The tensors of a model: matrices in the format, vectors in float32."""
    random = np.random.default_rng(seed)
    return {
        key: packed(name if value.ndim == 2 else "f32", value, random, shuffled="q_proj" in key)
        for key, value in state.items()
    }
