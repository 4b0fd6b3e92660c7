"""`option`: a field of the settings with its description and limits, and the checks that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from puna.errors import ArgumentError, ConfigError, show, suggestion


def option(
    default: Any,
    text: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Returns a field of a class of settings.

    Args:
        default: the value of the field without an argument.
        text: describes the option, for help texts; the type and the limits are checked and need no words.
        at_least, above, at_most, below: limits of a number.
    """
    limits = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    return field(default=default, metadata={"text": text, "limits": {k: v for k, v in limits.items() if v is not None}})


@cache
def option_types(kind: type) -> dict[str, Any]:
    """Returns the type of each option of a class of settings."""
    return get_type_hints(kind)


def check_names(kind: type, names: Sequence[str]) -> None:
    """Raises ArgumentError for a name that is not an option of a class of settings."""
    options = [item.name for item in fields(kind)]
    for name in names:
        if name not in options:
            raise ArgumentError(
                f"{show(name)} is not an option of training{suggestion(name, options)}; the options are "
                f"{', '.join(options)}"
            )


def checked(kind: type, item: Field[Any], value: Any) -> Any:
    """Returns the value of an option in the type of its field, such as a tuple for a list, and 1.0 for 1.

    Raises:
        ConfigError: the value has another type, or is outside the limits.
    """
    converted = _converted(option_types(kind)[item.name], value)
    if converted is _INVALID:
        raise ConfigError(f"{item.name} is {show(value)}; it must be {_describe(option_types(kind)[item.name], item)}")
    numbers = list(converted.values()) if isinstance(converted, Mapping) else converted
    for number in numbers if isinstance(numbers, list | tuple) else [numbers]:
        if type(number) in (int, float) and not _within(number, item):
            raise ConfigError(
                f"{item.name} is {show(value)}; it must be {_describe(option_types(kind)[item.name], item)}"
            )
    return converted


_INVALID = object()


def _converted(kind: Any, value: Any) -> Any:
    """Returns `value` as `kind`, or `_INVALID`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for choice in sorted(arguments, key=lambda item: item is float):  # 1 stays an integer where both are allowed
            if (converted := _converted(choice, value)) is not _INVALID:
                return converted
        return _INVALID
    if origin is Literal:
        matches = [choice for choice in arguments if type(choice) is type(value) and choice == value]
        return matches[0] if matches else _INVALID
    if origin is tuple:
        return _sequence(arguments[0], value)
    if origin is not None:
        return _mapping(arguments[1], value)
    return _scalar(kind, value)


def _sequence(kind: Any, value: Any) -> Any:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        return _INVALID
    items = tuple(_converted(kind, item) for item in value)
    return _INVALID if any(item is _INVALID for item in items) else items


def _mapping(kind: Any, value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return _INVALID
    items = {key: _converted(kind, item) for key, item in value.items()}
    return _INVALID if any(item is _INVALID for item in items.values()) else items


def _scalar(kind: Any, value: Any) -> Any:
    if kind is NoneType or kind is None:
        return None if value is None else _INVALID
    if kind is bool:
        return value if isinstance(value, bool) else _INVALID
    if isinstance(value, bool):
        return _INVALID
    if kind is int:
        return int(value) if isinstance(value, Integral) else _INVALID
    if kind is float:
        return float(value) if isinstance(value, Real) and math.isfinite(value) else _INVALID
    if kind is str and hasattr(value, "__fspath__"):
        return str(value)
    return value if isinstance(value, kind) else _INVALID


def _within(number: Any, item: Field[Any]) -> bool:
    tests = {
        "at least": lambda limit: number >= limit,
        "above": lambda limit: number > limit,
        "at most": lambda limit: number <= limit,
        "below": lambda limit: number < limit,
    }
    return all(tests[name](limit) for name, limit in item.metadata["limits"].items())


def _describe(kind: Any, item: Field[Any]) -> str:
    """Returns the words for the values that an option accepts."""
    limits = " and ".join(
        f"{name} {limit:,}" if isinstance(limit, int) else f"{name} {limit:g}"
        for name, limit in item.metadata["limits"].items()
    )
    return f"{describe_type(kind)}{' ' * bool(limits)}{limits}"


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "omitted"}


def describe_type(kind: Any) -> str:
    """Returns a type in words, such as 'a whole number or "auto"'."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe_type(item) for item in arguments if item is not NoneType)
    if origin is Literal:
        return " or ".join(f'"{item}"' if isinstance(item, str) else str(item) for item in arguments)
    if origin is tuple:
        return f"a list, each item {describe_type(arguments[0])}"
    if origin is not None:
        return f"a table, each value {describe_type(arguments[1])}"
    return _NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")
