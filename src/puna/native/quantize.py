"""Quantising rows of numbers into blocks, in the native library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats.blocks import BlockFormat
from puna.native.library import chosen_kernels, default_threads, load_library


def quantize(
    rows: NDArray[np.uint8],
    source: BlockFormat,
    columns: int,
    target: BlockFormat,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> NDArray[np.uint8]:
    """Rows of a plain type as blocks of another format: (rows, bytes per row) to (rows, bytes per row).

    Scales are searched as ggml's quantisers search them. A row becomes the same bytes whatever the threads, and on
    every processor.

    Args:
        rows: packed as `source`, which is f32, f16 or bf16.
        columns: values of a row, whole blocks of `target`.
        importance: (columns,), how much an error in each column matters.
        threads: None means one per physical core.

    Raises:
        CheckpointError: rows that are no whole blocks, a value or an importance that is not finite, or formats that
            cannot be quantised from or to.
    """
    count = len(rows)
    data = np.ascontiguousarray(rows)
    if data.nbytes != source.size((count, columns)):
        raise CheckpointError(f"{data.nbytes} bytes for {count} rows of {columns} {source.name} values")
    out = np.empty((count, target.size((1, columns))), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (columns,):
        raise CheckpointError(f"importance of shape {weights.shape}; a number for each of {columns} columns is needed")
    library = load_library()
    failed = library.puna_quantize(
        chosen_kernels().encode(),
        default_threads(threads),
        data.ctypes.data,
        source.ggml_id,
        count,
        columns,
        target.ggml_id,
        None if weights is None else weights.ctypes.data,
        out.ctypes.data,
    )
    if failed:
        raise CheckpointError(
            f"{source.name} cannot be quantised to {target.name}: {library.puna_error().decode()}; check the source"
        )
    return out
