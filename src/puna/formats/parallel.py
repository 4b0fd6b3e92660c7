"""Runs NumPy code on all processors: NumPy releases the interpreter lock while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_MAX_THREADS = 16
"""With more threads, memory bandwidth limits the code, and each thread has temporary arrays."""


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
