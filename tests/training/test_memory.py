"""Memory of training steps."""

from __future__ import annotations

import ctypes
import resource

import numpy as np
import pytest

from puna.training.memory import kept_memory

HAS_GLIBC = hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def page_faults_of_an_array():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8 << 20, np.float64)  # 64 MB: more than the largest block that glibc keeps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not HAS_GLIBC, reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_page_faults():
    with kept_memory():
        page_faults_of_an_array()
        faults = [page_faults_of_an_array() for _ in range(3)]
        assert min(faults) < 100, faults  # the second array may still need a larger heap, after other tests
    assert page_faults_of_an_array() >= 32  # pages of 2 MB, or of 4 KB
    np.ones(1 << 20, np.float64)  # 8 MB, which glibc keeps after its first release
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(1 << 20, np.float64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100
