"""The native runtime: the shared library and `NativeBackend`. The only package that handles pointers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from puna.native.library import Machine, load_library, machine

if TYPE_CHECKING:
    from puna.native.backend import NativeBackend, check_supported

__all__ = ["Machine", "NativeBackend", "check_supported", "load_library", "machine"]


def __getattr__(name: str) -> Any:
    """Imports the backend, and NumPy with it, on first use."""
    if name in ("NativeBackend", "check_supported"):
        return getattr(importlib.import_module("puna.native.backend"), name)
    raise AttributeError(f"module 'puna.native' has no attribute {name!r}")
