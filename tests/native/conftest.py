"""A fixture that runs a test with each build of the native kernels."""

from __future__ import annotations

import pytest

from puna.native import machine


@pytest.fixture(params=machine().kernels)
def kernels(request, monkeypatch) -> str:
    """Runs the test with each build of the kernels that this processor supports."""
    monkeypatch.setenv("PUNA_KERNELS", request.param)
    return request.param
