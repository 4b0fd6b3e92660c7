"""The native runtime: its library, the machine it finds, and `NativeBackend`. The only room that knows a pointer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from puna.native.library import Machine, load_library, machine

if TYPE_CHECKING:
    from puna.native.backend import NativeBackend, check_supported

__all__ = ["Machine", "NativeBackend", "check_supported", "load_library", "machine"]


def __getattr__(name: str) -> Any:
    """Loads the backend, and numpy with it, on first use."""
    if name in ("NativeBackend", "check_supported"):
        return getattr(importlib.import_module("puna.native.backend"), name)
    raise AttributeError(f"module 'puna.native' has no attribute {name!r}")
