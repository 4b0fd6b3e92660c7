"""Verification: the written files are read back and compared with the tensors that were to be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from puna.checkpoint import open_checkpoint
from puna.checkpoint.weight import RowSource
from puna.convert.lazy_rows import pieces, rows_per_piece
from puna.convert.target import Target
from puna.errors import CheckpointError


def verify_tensors(path: Path, target: Target, progress: Callable[[int], None]) -> int:
    """Compares every tensor at `path` with the target's tensor; returns the number of tensors.

    Args:
        progress: called with the number of bytes compared since the last call.

    Raises:
        CheckpointError: a tensor differs.
    """
    written = open_checkpoint(path).tensors
    if written.keys() != target.tensors.keys():
        names = sorted(written.keys() ^ target.tensors.keys())
        raise CheckpointError(
            f"{path}: tensors {names[:5]} are missing or unexpected; the disk may be failing, convert again"
        )
    for name, expected in target.tensors.items():
        _compare(path, written[name], expected, progress)
    return len(written)


def _compare(path: Path, written: RowSource, expected: RowSource, progress: Callable[[int], None]) -> None:
    if written.format != expected.format or written.shape != expected.shape:
        read, intended = (f"{tensor.format.name} of shape {tensor.shape}" for tensor in (written, expected))
        raise CheckpointError(f"{path}: {written.name} is {read} instead of {intended}; convert again")
    step = rows_per_piece(expected)
    for expected_bytes, written_bytes in zip(pieces(expected), pieces(written, step=step), strict=True):
        if not np.array_equal(expected_bytes, written_bytes):
            raise CheckpointError(f"{path}: {written.name} has wrong values; the disk may be failing, convert again")
        progress(written_bytes.nbytes)
