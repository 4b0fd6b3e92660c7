"""Helpers for small models on the native runtime: weights in every format, runs in chunks, comparison of logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from puna.backend import Chunk, consecutive_pages
from puna.formats.blocks import FORMATS, BlockFormat
from puna.native import NativeBackend
from tests.helpers.blocks import random_blocks


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
        data = random_blocks(name, block.bytes, values.size // block.values, values.std(), random)
    order = random.permutation(len(values)) if shuffled else None
    return PackedTensor(block, values.shape, np.ascontiguousarray(data).reshape(-1).view(np.uint8), order)


def pack_state(name: str, state: dict[str, np.ndarray], seed: int = 5) -> dict[str, PackedTensor]:
    """Returns a model's tensors: matrices in the format `name` (rows of q in random order), vectors in float32."""
    random = np.random.default_rng(seed)
    return {
        key: pack(name if value.ndim == 2 else "f32", value, random, shuffled=key.endswith("q_proj.weight"))
        for key, value in state.items()
    }


def run(backend: NativeBackend, ids: np.ndarray, chunk_sizes: list[int]) -> np.ndarray:
    """Returns the logits of every position; `chunk_sizes` are the numbers of ids in each chunk."""
    rows, start, pages = [], 0, consecutive_pages(len(ids))
    for size in chunk_sizes:
        tokens = ids[start : start + size]
        rows.append(backend.forward([Chunk(pages, tokens, start, len(tokens))]).logits)
        start += len(tokens)
    return np.concatenate(rows)


def relative_rms(result: np.ndarray, expected: np.ndarray) -> float:
    """Returns the root mean square of the difference, divided by that of the expected values."""
    return float(np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean()))
