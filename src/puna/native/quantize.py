"""Quantises rows of floats to block formats, in the native library."""

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
    """Quantises rows of floats to a block format. Input and output are bytes, (rows, bytes per row).

    Scales are searched as in ggml's quantisers. The bytes of a row depend neither on the number of threads nor on the
    processor.

    Args:
        rows: values of type `source`, which is f32, f16 or bf16.
        columns: number of values in a row, a multiple of the block size of `target`.
        importance: (columns,), 0 or more: the weight of errors in each column.
        threads: number of threads; None means one per physical core.

    Raises:
        CheckpointError: if `columns` is not a multiple of the block size, a value or importance is not finite, or the
            formats are not supported.
    """
    count = len(rows)
    data = np.ascontiguousarray(rows)
    if data.nbytes != source.size((count, columns)):
        raise CheckpointError(f"got {data.nbytes} bytes for {count} rows of {columns} {source.name} values")
    out = np.empty((count, target.size((1, columns))), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (columns,):
        raise CheckpointError(f"importance has shape {weights.shape}; it must be {(columns,)}, a weight per column")
    library = load_library()
    status = library.puna_quantize(
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
    if status:
        raise CheckpointError(
            f"{source.name} cannot be quantised to {target.name}: {library.puna_error().decode()}; check the source"
        )
    return out
