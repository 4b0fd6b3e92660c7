"""Hides PyTorch and transformers, as if they were not installed.

Python imports `sitecustomize` when it starts. `make test-core` puts this folder on the module path. Processes that
tests start inherit the path.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


class _Finder(PathFinder):
    """Finds installed modules, except those of the hidden packages."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        hidden = fullname in ("torch", "transformers")
        return None if hidden else super().find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = _Finder
