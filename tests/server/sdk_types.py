"""The SDKs of OpenAI and Anthropic. Their types validate JSON: valid, and without fields unknown to them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


class Package:
    """A package that is imported when it is first used: every process collects these tests, and few run them."""

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            pytest.skip(f"{name} is not installed", allow_module_level=True)
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def parse(kind: Any, document: Any) -> Any:
    """Returns the document as an object of an SDK's type; fails if it is invalid or has unknown fields."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    value = _ADAPTERS[kind].validate_python(document)
    assert list(unknown_fields(value)) == []
    return value


def unknown_fields(value: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of the fields of an SDK's object that its type does not declare."""
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from unknown_fields(item, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from unknown_fields(item, f"{path}[{index}]")
