"""Attributes have the values of transformers, and the documented default of every argument changes nothing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import puna
from tests.compatibility.calls import call, has_call
from tests.compatibility.objects import new_object, recorded
from tests.compatibility.reasons import reason
from tests.compatibility.record import describe

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def shared_object(cls: str) -> Any:
    """Returns an object whose attributes are only read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return new_object(cls)


def attributes() -> Iterator[tuple[str, str, list[Any]]]:
    """Returns (class, name, values in each release) for attributes that puna has and that need no reason."""
    for cls, names in recorded().items():
        instance = shared_object(cls)
        for name, releases in names.items():
            values = [entry["default"] for entry in releases.values() if "default" in entry]
            if values and hasattr(instance, name) and reason(cls, name) is None:
                yield cls, name, values


def arguments() -> Iterator[tuple[str, str, str, Any]]:
    """Returns (class, method, argument, default) for the optional arguments that need no reason."""
    for cls, names in recorded().items():
        for method, releases in names.items():
            seen = set()
            for release in releases.values():
                for argument, default in release.get("arguments", {}).items():
                    key = (argument, json.dumps(default))
                    plain = not (isinstance(default, str) and default.startswith("<"))
                    usable = plain and has_call(cls, method, argument) and reason(cls, f"{method}({argument})") is None
                    if usable and reason(cls, method) is None and key not in seen:
                        seen.add(key)
                        yield cls, method, argument, default


@pytest.mark.parametrize(("cls", "name", "values"), list(attributes()))
def test_attributes_have_the_value_of_a_release(cls, name, values):
    value = describe(getattr(shared_object(cls), name))
    assert any(value == other and type(value) is type(other) for other in values) or _same_kind(value, values)


@pytest.fixture(scope="module")
def without_arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Any]]:
    """Returns (folder of saved files, result) of a call without optional arguments, which is made once."""

    @cache
    def make_call(cls: str, method: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("call")
        return folder, _result(cls, method, folder)

    return make_call


@pytest.mark.parametrize(("cls", "method", "argument", "default"), list(arguments()))
def test_the_default_of_an_argument_changes_nothing(cls, method, argument, default, without_arguments, monkeypatch):
    monkeypatch.setattr(getattr(puna, cls), "_auto_class", None, raising=False)  # register_for_auto_class sets it
    folder, expected = without_arguments(cls, method)
    assert _result(cls, method, folder, **{argument: default}) == expected


def _result(cls: str, method: str, folder: Path, **more: Any) -> Any:
    torch.default_generator.manual_seed(0)
    return _plain(call(cls, method, folder, **more))


def _same_kind(value: Any, others: list[Any]) -> bool:
    """Whether both are objects that JSON cannot hold; their contents are tested elsewhere."""
    return isinstance(value, str) and value.startswith("<") and any(str(other).startswith("<") for other in others)


def _plain(value: Any) -> Any:
    """Returns a result in a form that can be compared: only the shape of random weights is."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, torch.nn.Module):
        return {name: tuple(tensor.shape) for name, tensor in value.state_dict().items()}
    if isinstance(value, dict) or hasattr(value, "keys"):
        return {key: _plain(item) for key, item in dict(value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | float | str | type(None)) or hasattr(value, "to_diff_dict"):
        return value
    return type(value)
