"""Compares the public names of the LLaMA classes of two releases of transformers with those of puna.

`names.json`, which `record` writes, has the names of transformers; `reasons` explains the names that puna lacks;
`evidence` finds the test of each other name.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.compatibility.calls import has_call
from tests.compatibility.evidence import find
from tests.compatibility.objects import new_object, recorded
from tests.compatibility.reasons import reason
from tests.compatibility.record import MODELS, describe

RELEASES = ("4.34", "5.23")

_FOLDERS = {
    "LlamaConfig": ("config", "checkpoint", "model", "convert", ""),
    "GenerationConfig": ("config", "model/generation", "model", ""),
    "LlamaTokenizer": ("tokenizer", "golden", "convert", ""),
    "LlamaTokenizerFast": ("tokenizer", "golden", "convert", ""),
    **dict.fromkeys(MODELS, ("model", "libraries", "compat", "golden", "adapters", "")),
}
"""Folders of the tests of each class, the most specific first."""

ABSENT = "absent"
_MISSING = object()


@dataclass(frozen=True)
class Row:
    """A public name of a class: a method, an attribute or an argument of a method.

    Attributes:
        cls: the class.
        name: the name; for an argument, `method(argument)`.
        releases: for each release, the default value, "method", or "absent".
        ours: the same for puna; "accepted" for an argument that is not named in the signature.
        proof: the test that shows the behaviour of puna, or the reason why puna lacks the name; None if there is none.
    """

    cls: str
    name: str
    releases: tuple[str, str]
    ours: str
    proof: str | None


def survey() -> list[Row]:
    """Returns a row for each public name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row for cls, names in recorded().items() for row in _rows(cls, names, new_object(cls))]


def _rows(cls: str, names: dict[str, dict[str, Any]], instance: Any) -> Iterator[Row]:
    for name, releases in names.items():
        called = name in ("__init__", "__call__")
        value = _own(type(instance) if called else instance, name)
        if not called:
            yield _row(cls, name, (name,), releases, ABSENT if value is _MISSING else _shown(value))
        if value is _MISSING or not callable(value):
            continue
        for argument in sorted({key for release in releases.values() for key in release.get("arguments", {})}):
            defaults = {
                release: {"default": entry["arguments"][argument]}
                for release, entry in releases.items()
                if argument in entry.get("arguments", {})
            }
            required = any(entry["default"] == "<required>" for entry in defaults.values())
            words = (argument,) if called else (name,) if required else (name, argument)
            yield _row(cls, f"{name}({argument})", words, defaults, _argument(value, argument))


def _own(value: Any, name: str) -> Any:
    """Returns an attribute, unless it belongs to a class of transformers.

    Puna's classes derive from those of transformers once a program, such as another test, has imported both.
    """
    cls = value if inspect.isclass(value) else type(value)
    owner = next((base for base in inspect.getmro(cls) if name in vars(base)), None)
    static = None if owner is None else vars(owner)[name]
    function = getattr(static, "__func__", getattr(static, "fget", static))
    if any(str(getattr(each, "__module__", "")).startswith("transformers.") for each in (owner, function)):
        return _MISSING
    return getattr(value, name, _MISSING)


def _row(cls: str, name: str, words: tuple[str, ...], releases: dict[str, Any], ours: str) -> Row:
    shown = (_entry(releases.get(RELEASES[0])), _entry(releases.get(RELEASES[1])))
    text = reason(cls, name) or reason(cls, name.partition("(")[0])
    if ours == ABSENT or text is not None:
        return Row(cls, name, shown, ABSENT if ours == "accepted" else ours, text)
    test = find(words, _FOLDERS[cls])
    return Row(cls, name, shown, ours, _shared_test(cls, name, releases, ours) if test is None else str(test))


def _shared_test(cls: str, name: str, releases: dict[str, Any], ours: str) -> str | None:
    """Returns the test of this folder that covers a name without another test."""
    values = [entry["default"] for entry in releases.values() if "default" in entry]
    method, _, argument = name.partition("(")
    if argument and method != "__init__" and not has_call(cls, method, argument.removesuffix(")")):
        return None
    plain = [value for value in values if not (isinstance(value, str) and value.startswith("<"))]
    if argument:
        return "compatibility/test_defaults.py::test_the_default_of_an_argument_changes_nothing" if plain else None
    return "compatibility/test_defaults.py::test_attributes_have_the_value_of_a_release" if values else None


def _entry(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ABSENT
    return "method" if "arguments" in entry else json.dumps(entry["default"])


def _shown(value: Any) -> str:
    return "method" if callable(value) and not inspect.isclass(value) else json.dumps(describe(value))


def _argument(method: Any, name: str) -> str:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return "accepted"
    if name in parameters:
        default = parameters[name].default
        return '"<required>"' if default is inspect.Parameter.empty else json.dumps(describe(default))
    return "accepted" if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else ABSENT
