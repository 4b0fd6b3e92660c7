"""Runs NumPy code on all processors: NumPy releases the interpreter lock while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")

_MAX_THREADS = 16
"""More threads would not be faster, since memory bandwidth is the limit. Each thread also needs temporary arrays."""


VALUES_AT_ONCE = 1 << 19
"""Values that a thread unpacks at once: the temporary arrays then fit in the second-level cache."""


def unpack_rows(
    unpack: Callable[[NDArray[np.intp]], NDArray[np.uint8]], rows: NDArray[np.intp], columns: int, width: int
) -> NDArray[np.uint8]:
    """Returns the bytes of `unpack(rows)`, (rows, width); threads unpack some rows, of `columns` values, at a time.

    Each call of `unpack` gets a multiple of eight rows, except for the last rows.
    """
    out = np.empty((len(rows), width), np.uint8)
    step = max(1, VALUES_AT_ONCE // columns // 8) * 8

    def fill(start: int) -> None:
        piece = rows[start : start + step]
        out[start : start + step] = unpack(piece).reshape(len(piece), width)

    on_all_threads(fill, range(0, len(rows), step))
    return out


def on_all_threads(function: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Calls `function(item)` for each item, in any order; raises the first exception in the order of the items."""
    threads = min(len(items), _processors(), _MAX_THREADS)
    if threads < 2:
        for item in items:
            function(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(function, items):
                pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _processors() -> int:
    """Returns the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
