"""Types of JSON values. Each type checks values, and describes itself in words and as a JSON schema for OpenAPI."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from puna.errors import show_json
from puna.server.errors import ApiError
from puna.server.settings import Limits
from puna.server.tools.values import read_arguments


@dataclass
class Reader:
    """The state of reading one request.

    Attributes:
        limits: maximum sizes.
        refuses_unknown: whether an unknown top-level field is an error.
        ignored: paths of the unknown fields that were accepted.
        enabled: settings of the server that make refused fields honoured.
    """

    limits: Limits
    refuses_unknown: bool = True
    ignored: list[str] = field(default_factory=list)
    enabled: tuple[str, ...] = ()


class Absent:
    """Represents the value of an absent field in an error: "x is missing; it must be ..."."""

    def __repr__(self) -> str:
        return "missing"


def invalid(path: str, value: object, expected: str) -> ApiError:
    """Returns the error for a value of the wrong type or range."""
    return ApiError(400, f"{path} is {show_json(value)}; it must be {expected}", param=path, code="invalid_value")


class Type:
    """A type of JSON values."""

    python: ClassVar[tuple[type, ...]] = (object,)
    """The types of the values in Python."""

    def resembles(self, value: Any) -> bool:
        """Returns whether a value is of this kind, so that this type's error explains what is wrong with it."""
        return object in self.python or type(value) in self.python

    def read(self, path: str, value: Any, reader: Reader) -> Any:
        """Returns the value, in a form that depends only on its meaning.

        Args:
            path: the name of the value in errors, such as messages[0].role.

        Raises:
            ApiError: 400, if the value does not have this type.
        """
        raise NotImplementedError

    def words(self, limits: Limits) -> str:
        """Returns the description of the type in words, such as "an integer from 1 to 8"."""
        raise NotImplementedError

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the type as a JSON schema."""
        raise NotImplementedError


Bound = int | float | str | None
"""A limit of a number or a size: a value, the name of a field of `Limits`, or None."""


def _bound(bound: Bound, limits: Limits) -> Any:
    return getattr(limits, bound) if isinstance(bound, str) else bound


def _range(low: Any, high: Any) -> str:
    if low is None:
        return "" if high is None else f" of at most {high}"
    return f" of at least {low}" if high is None else f" from {low} to {high}"


_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Integer(Type):
    """Integers of 64 bits from `low` to `high`; 2.0 is an integer, as in JSON Schema."""

    low: Bound = None
    high: Bound = None
    python = (int, float)

    def read(self, path: str, value: Any, reader: Reader) -> int:
        """Returns the number as an int."""
        low, high = self._ends(reader.limits)
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(number, int) or isinstance(number, bool):
            raise invalid(path, value, self.words(reader.limits))
        if not _LOWEST <= number <= _HIGHEST:  # the words name no range if a field has none of its own
            raise invalid(path, value, "an integer" + _range(low, high))
        if not low <= number <= high:
            raise invalid(path, value, self.words(reader.limits))
        return number

    def _ends(self, limits: Limits) -> tuple[int, int]:
        low, high = _bound(self.low, limits), _bound(self.high, limits)
        return _LOWEST if low is None else low, _HIGHEST if high is None else high

    def words(self, limits: Limits) -> str:
        """Returns "an integer" with its range."""
        return "an integer" + _range(_bound(self.low, limits), _bound(self.high, limits))

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        lowest, highest = self._ends(limits)
        return {"type": "integer", "minimum": lowest, "maximum": highest}


@dataclass(frozen=True)
class Number(Type):
    """Numbers from `low` to `high`; `above` excludes `low` itself."""

    low: Bound = None
    high: Bound = None
    above: bool = False
    python = (int, float)

    def read(self, path: str, value: Any, reader: Reader) -> float:
        """Returns the number."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise invalid(path, value, self.words(reader.limits))
        low, high = _bound(self.low, reader.limits), _bound(self.high, reader.limits)
        too_low = low is not None and (value < low or (self.above and value == low))
        if too_low or (high is not None and value > high):
            raise invalid(path, value, self.words(reader.limits))
        return value

    def words(self, limits: Limits) -> str:
        """Returns "a number" with its range."""
        low, high = _bound(self.low, limits), _bound(self.high, limits)
        if self.above:
            return f"a number above {low}" + ("" if high is None else f", at most {high}")
        return "a number" + _range(low, high)

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        lowest = "exclusiveMinimum" if self.above else "minimum"
        bounds = {lowest: _bound(self.low, limits), "maximum": _bound(self.high, limits)}
        return {"type": "number", **{name: bound for name, bound in bounds.items() if bound is not None}}


@dataclass(frozen=True)
class Boolean(Type):
    """True and false."""

    python = (bool,)

    def read(self, path: str, value: Any, reader: Reader) -> bool:
        """Returns the value."""
        if not isinstance(value, bool):
            raise invalid(path, value, self.words(reader.limits))
        return value

    def words(self, limits: Limits) -> str:
        """Returns "true or false"."""
        return "true or false"

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Type):
    """Texts of `low` to `high` characters; if `values` is set, only these texts."""

    low: int = 0
    high: Bound = None
    values: tuple[str, ...] = ()
    python = (str,)

    def read(self, path: str, value: Any, reader: Reader) -> str:
        """Returns the text."""
        high = _bound(self.high, reader.limits)
        valid = isinstance(value, str) and len(value) >= self.low and (high is None or len(value) <= high)
        if not valid or (self.values and value not in self.values):
            raise invalid(path, value, self.words(reader.limits))
        return str(value)

    def words(self, limits: Limits) -> str:
        """Returns "a text" with its length, or the values."""
        if self.values:
            return " or ".join(f'"{value}"' for value in self.values)
        high = _bound(self.high, limits)
        if high is not None:
            return f"a text of {self.low} to {high} characters"
        return f"a text of at least {self.low} character{'s' if self.low > 1 else ''}" if self.low else "a text"

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        high = _bound(self.high, limits)
        bounds = {"enum": list(self.values), "minLength": self.low, "maxLength": high}
        return {"type": "string", **{name: bound for name, bound in bounds.items() if bound}}


@dataclass(frozen=True)
class ObjectText(Text):
    """Texts that are a JSON object, which a model wrote; an empty text is an object without keys."""

    def read(self, path: str, value: Any, reader: Reader) -> str:
        """Returns the text."""
        text = super().read(path, value, reader)
        try:
            document = read_arguments(text or "{}")
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise invalid(path, value, self.words(reader.limits))
        return text

    def words(self, limits: Limits) -> str:
        """Returns "the text of a JSON object"."""
        return "the text of a JSON object"


@dataclass(frozen=True)
class Array(Type):
    """Arrays of `low` to `high` items of one type."""

    item: Type
    low: int = 0
    high: Bound = None

    def resembles(self, value: Any) -> bool:
        """Returns whether a value is an array whose first item resembles the type of the items."""
        return isinstance(value, list) and (not value or self.item.resembles(value[0]))

    def read(self, path: str, value: Any, reader: Reader) -> list[Any]:
        """Returns the items."""
        high = _bound(self.high, reader.limits)
        if not isinstance(value, list):
            raise invalid(path, value, self.words(reader.limits))
        if len(value) < self.low or (high is not None and len(value) > high):
            count = f"has {len(value)} items" if value else "is empty"
            raise ApiError(400, f"{path} {count}; it must be {self.words(reader.limits)}", param=path,
                           code="invalid_value")  # fmt: skip
        return [self.item.read(f"{path}[{index}]", item, reader) for index, item in enumerate(value)]

    def words(self, limits: Limits) -> str:
        """Returns "an array of" items."""
        high = _bound(self.high, limits)
        sizes = f"{self.low} to {high}" if high is not None else f"at least {self.low}" if self.low else ""
        return f"an array of {sizes + ' items, each ' if sizes else 'items, each '}{self.item.words(limits)}"

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        bounds = {"minItems": self.low, "maxItems": _bound(self.high, limits)}
        bounds = {name: bound for name, bound in bounds.items() if bound}
        return {"type": "array", "items": self.item.schema(limits), **bounds}


@dataclass(frozen=True)
class Map(Type):
    """Objects with any keys, at most `high`, whose values have the type `item`; None allows all values."""

    item: Type | None = None
    high: Bound = None
    key_characters: int | None = None
    python = (dict,)

    def read(self, path: str, value: Any, reader: Reader) -> dict[str, Any]:
        """Returns the object."""
        high = _bound(self.high, reader.limits)
        if not isinstance(value, dict) or (high is not None and len(value) > high):
            raise invalid(path, value, self.words(reader.limits))
        for key in value:
            if self.key_characters is not None and len(key) > self.key_characters:
                raise invalid(f"a key of {path}", key, f"a text of at most {self.key_characters} characters")
        if self.item is None:
            return value
        return {key: self.item.read(f"{path}.{key}", item, reader) for key, item in value.items()}

    def words(self, limits: Limits) -> str:
        """Returns "an object" with its size."""
        high = _bound(self.high, limits)
        size = "" if high is None else f" of at most {high} entries"
        return f"an object{size}" + ("" if self.item is None else f" whose values are each {self.item.words(limits)}")

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        schema: dict[str, Any] = {"type": "object"}
        if self.item is not None:
            schema["additionalProperties"] = self.item.schema(limits)
        if (high := _bound(self.high, limits)) is not None:
            schema["maxProperties"] = high
        if self.key_characters is not None:
            schema["propertyNames"] = {"maxLength": self.key_characters}
        return schema


@dataclass(frozen=True)
class Any_(Type):  # noqa: N801
    """Any JSON value."""

    def read(self, path: str, value: Any, reader: Reader) -> Any:
        """Returns the value."""
        return value

    def words(self, limits: Limits) -> str:
        """Returns "any JSON value"."""
        return "any JSON value"

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        return {}


class OneOf(Type):
    """Values of several types; a value is read as the first type that accepts it."""

    def __init__(self, *types: Type) -> None:
        self.types = types

    def read(self, path: str, value: Any, reader: Reader) -> Any:
        """Returns what the first type that accepts the value returns."""
        errors = []
        for kind in self.types:
            marks = len(reader.ignored)
            try:
                return kind.read(path, value, reader)
            except ApiError as exc:
                del reader.ignored[marks:]
                errors.append(exc)
        similar = [exc for kind, exc in zip(self.types, errors, strict=True) if kind.resembles(value)]
        # An error about a part of the value is more specific than one about the complete value.
        specific = [exc for exc in similar or errors if exc.param != path] or similar
        raise specific[0] if specific else invalid(path, value, self.words(reader.limits))

    def resembles(self, value: Any) -> bool:
        """Returns whether a value resembles one of the types."""
        return any(kind.resembles(value) for kind in self.types)

    def words(self, limits: Limits) -> str:
        """Returns the descriptions of all types."""
        return ", or ".join(kind.words(limits) for kind in self.types)

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        return {"anyOf": [kind.schema(limits) for kind in self.types]}
