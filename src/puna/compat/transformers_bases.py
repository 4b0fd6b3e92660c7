"""Makes classes subclasses of transformers' base classes once both are imported; exists only for compatibility.

Libraries such as trl and `transformers.Trainer` accept only models and tokenizers that are instances of
`transformers.PreTrainedModel` and `PreTrainedTokenizerBase`. puna does not import transformers. Instead, the class of
transformers is appended to the bases of puna's class when the program imports both, in either order. Every attribute
that puna's class had before keeps its value, so that transformers provides only attributes that puna lacks.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NOT_RESTORED = frozenset(
    {"__class__", "__dict__", "__doc__", "__module__", "__weakref__", "__annotations__", "__abstractmethods__",
     "__init_subclass__", "__subclasshook__", "__slots__"}
)  # fmt: skip
"""Attributes that do not keep their values: every class has them, or they work only on the class that defines them."""

_PENDING: dict[str, list[tuple[type, str]]] = {}
"""For each module that is not imported yet: (puna's class, name of the base class in the module)."""


def inherit_when_imported(kind: type, module: str, name: str) -> None:
    """Appends the class `name` of `module` to the bases of `kind`: at once, or when the module is imported.

    Args:
        kind: a class with a base other than `object`. Its `__init__` must not call that of the new base, and instances
            must not rely on the absence of attributes.
        module: the module of transformers that defines the class; a missing class is ignored, because releases differ.
    """
    if module in sys.modules:
        _append_base(kind, sys.modules[module], name)
    else:
        _PENDING.setdefault(module, []).append((kind, name))


def _append_base(kind: type, module: ModuleType, name: str) -> None:
    base = getattr(module, name, None)
    if not isinstance(base, type) or issubclass(kind, base):
        return
    before = {name: inspect.getattr_static(kind, name) for name in dir(kind) if name not in _NOT_RESTORED}
    kind.__bases__ = (*(each for each in kind.__bases__ if not issubclass(base, each)), base)
    for name, value in before.items():
        if inspect.getattr_static(kind, name) is not value:
            setattr(kind, name, value)
    if "__getattr__" not in before and hasattr(kind, "__getattr__"):
        kind.__getattr__ = _no_attribute  # the new base's method would compute attributes from its own state


def _no_attribute(self: object, name: str) -> Any:
    raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class _ImportObserver:
    """An import hook that completes the classes in `_PENDING` when their module has been executed."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _PENDING:
            return None
        finders = (finder for finder in sys.meta_path if finder is not _ImportObserver)
        specs = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            for kind, base in _PENDING.pop(name, []):
                _append_base(kind, module, base)

        loader: Any = spec.loader
        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _ImportObserver)
