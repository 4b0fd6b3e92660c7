"""`cached_property`: `functools.cached_property` without the lock that it has until Python 3.11.

All instances of a class share that lock. If another thread holds it when the process forks, it stays locked in the
child, which would wait for it forever. Two threads may compute the same value at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

Value = TypeVar("Value")


class cached_property(Generic[Value]):  # noqa: N801
    """Decorator: a property that is computed once per instance. An assignment to the attribute replaces the value."""

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object, owner: type) -> cached_property[Value] | Value:
        if instance is None:
            return self
        # Python calls this method only until the instance has an attribute of this name.
        value: Value = instance.__dict__.setdefault(self._name, self._function(instance))
        return value
