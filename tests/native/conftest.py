"""The builds of the native kernels."""

from __future__ import annotations

import pytest

from puna.native import machine


@pytest.fixture(params=machine().kernels)
def kernels(request, monkeypatch) -> str:
    """Each build of the kernels that this processor runs; the runtime uses it."""
    monkeypatch.setenv("PUNA_KERNELS", request.param)
    return request.param
