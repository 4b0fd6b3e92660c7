"""Helpers for small models on the native runtime: weights in every format, runs in chunks, comparison of logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from puna.backend import Chunk
from puna.formats.blocks import FORMATS, BlockFormat
from puna.native import NativeBackend

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
"""Offsets of a block's float16 scales, in bytes."""

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
"""Approximate standard deviation of a random block's values, divided by its float16 scale."""

CENTRE = {"q4_1": -7.5, "q5_1": -15.5, "q2_K": 1.5, "q4_K": 7.5, "q5_K": 15.5}
"""Ratio of a block's second scale (of minimums) to its first at which values average zero, as in real models."""


@dataclass
class PackedTensor:
    """A tensor as `NativeBackend` reads it; row r of the matrix is row order[r] of `data`."""

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


def pack(name: str, values: np.ndarray, random: np.random.Generator, *, shuffled: bool = False) -> PackedTensor:
    """Returns the values in a float format, or random blocks of about the same standard deviation in a block format."""
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
    return PackedTensor(block, values.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8), order)


def pack_state(name: str, state: dict[str, np.ndarray], seed: int = 5) -> dict[str, PackedTensor]:
    """Returns a model's tensors: matrices in the format (the rows of q in random order), vectors in float32."""
    random = np.random.default_rng(seed)
    return {
        key: pack(name if value.ndim == 2 else "f32", value, random, shuffled=key.endswith("q_proj.weight"))
        for key, value in state.items()
    }


def run(backend: NativeBackend, ids: np.ndarray, pieces: list[int], slot: int = 0) -> np.ndarray:
    """Returns the logits of every position; `pieces` has the sizes of the chunks in which the ids are read."""
    rows, start = [], 0
    for size in pieces:
        tokens = ids[start : start + size]
        rows.append(backend.forward([Chunk(slot, tokens, start, len(tokens))]))
        start += len(tokens)
    backend.free(slot)
    return np.concatenate(rows)


def relative_rms(result: np.ndarray, expected: np.ndarray) -> float:
    """Returns the root mean square of the difference, divided by that of the expected values."""
    return float(np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean()))
