"""What the C library keeps between steps, so that the system need not clear the same pages again, or returns."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puna.native.training import limit_compiled_products

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of glibc's parameters, in malloc.h
_HUGE_PAGE, _MADV_HUGEPAGE = 2 << 20, 14
_AFTERWARDS = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}
"""The largest values of glibc's dynamic thresholds, which any call of mallopt turns off for the rest of the process."""


def keep_memory() -> None:
    """Keeps freed memory for the next step, in the complete process, until the end of `kept_memory`.

    A step frees and needs again some hundred megabytes. Without this, the system takes them back and clears them for
    the next step: 7 % of the time of a step, a sixth with full fine-tuning. Does nothing without glibc. Blocks of more
    than 64 MB are kept only for the main thread of a process, and not after one of its allocations has failed: glibc
    then takes this thread's memory from another arena.
    """
    limit_compiled_products()
    if (library := _glibc()) is not None:
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_MMAP_MAX, 0)
        _request_huge_pages(library)


def return_free_memory() -> None:
    """Returns pages between used blocks to the system, such as those that were needed to read data and the model.

    The free memory at the end of the heap stays, and the next step uses it. Does nothing without glibc.
    """
    if (library := _glibc()) is not None:
        library.malloc_trim(ctypes.c_size_t(-1))  # more than the end of any heap has


@contextmanager
def kept_memory() -> Iterator[None]:
    """Calls `keep_memory`; afterwards sets the largest values that glibc would choose, and returns free memory."""
    keep_memory()
    try:
        yield
    finally:
        if (library := _glibc()) is not None:
            for parameter, value in _AFTERWARDS.items():
                library.mallopt(parameter, value)
            library.malloc_trim(ctypes.c_size_t(0))


def _request_huge_pages(library: ctypes.CDLL) -> None:
    """Lets the system use pages of 2 MB for the part of the heap that is not used yet, up to half of the memory.

    Does nothing where reserved addresses count as memory.
    """
    policy = Path("/proc/sys/vm/overcommit_memory")
    is_counted = policy.exists() and policy.read_text().strip() == "2"
    if is_counted or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if block := library.malloc(size):  # addresses only; the heap keeps them
        start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        library.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
        library.free(block)


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "gnu_get_libc_version") else None
