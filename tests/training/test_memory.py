"""Memory of training steps."""

from __future__ import annotations

import ctypes
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from puna.native.memory import resident_memory
from puna.training.memory import kept_memory, return_free_memory

HAS_GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def page_faults_of_an_array():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8 << 20, np.float64)  # 64 MB: more than the largest block that glibc keeps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_page_faults():
    """Page faults of arrays of 64 MB while memory is kept and afterwards, and of 20 arrays of 8 MB at the end."""
    with kept_memory():
        page_faults_of_an_array()
        kept = page_faults_of_an_array()
    afterwards = page_faults_of_an_array()
    np.ones(1 << 20, np.float64)  # 8 MB, which glibc keeps after its first release
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(1 << 20, np.float64)
    return kept, afterwards, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not HAS_GLIBC, reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_page_faults():
    # In a process of its own: after a failed allocation, glibc takes this thread's memory from another arena and maps
    # blocks above 64 MB again each time; and other tests let allocations fail on purpose.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        kept, afterwards, small = process.submit(count_page_faults).result()
    assert kept < 100
    assert afterwards >= 32  # pages of 2 MB, or of 4 KB
    assert small < 100


def free_memory_between_blocks():
    """Bytes of the process that `return_free_memory` returns, of 64 MB that are free between used blocks."""
    with kept_memory():
        blocks = [np.ones(1 << 17, np.float64) for _ in range(128)]  # 1 MB each
        del blocks[::2]
        before = resident_memory()
        return_free_memory()
        after = resident_memory()
        assert all(block.all() for block in blocks)
    return before - after


@pytest.mark.skipif(not HAS_GLIBC, reason="the C library is not glibc")
def test_free_memory_between_used_blocks_is_returned():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        assert process.submit(free_memory_between_blocks).result() > 48 << 20
