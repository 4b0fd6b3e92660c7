"""Reads the options `json_schema`, `regex`, `grammar` and `choice`, and translates them to grammars of llguidance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeGuard

from puna.errors import RuleError, show, show_bytes
from puna.grammars.schemas import supported_form

Kind = Literal["json_schema", "regex", "grammar", "choice"]

OPTIONS: tuple[Kind, ...] = ("json_schema", "regex", "grammar", "choice")
"""The options; a request may have one of them."""

MAX_BYTES = 256 * 1024
"""Maximum size of a schema, an expression, a grammar or all choices together."""

_MAX_INTEGER = 2**53

_ANY_OBJECT = {"type": "object"}

_STRICT = {
    "whitespace_flexible": False,  # otherwise a model may write spaces without end
    "item_separator": ",",
    "key_separator": ":",
    "lenient": False,  # otherwise unsupported keywords have no effect
    "coerce_one_of": False,  # otherwise oneOf means anyOf
}
"""Options of llguidance's compiler of schemas."""


_ATTRIBUTE = re.compile(r"^\s*\??\w+\s*\[.*?\b(temperature|max_tokens)\s*=", re.MULTILINE)
"""An attribute of a rule of a grammar that has no effect, or that the text of an answer does not show."""

_ASCII_DIGITS = "d"
"""Makes \\d mean 0 to 9, as in JSON schemas: models choose surprising digits of other scripts."""


@dataclass(frozen=True)
class Rule:
    """What an answer must be.

    Attributes:
        kind: the option that specifies it.
        text: the schema as JSON, the regular expression, or the grammar.
    """

    kind: Kind
    text: str

    @property
    def grammar(self) -> dict[str, Any]:
        """The rule as a grammar in llguidance's format."""
        if self.kind == "json_schema":
            return {"json_schema": {**json.loads(self.text), "x-guidance": _STRICT}}
        if self.kind == "grammar":
            return {"lark_grammar": self.text}
        from llguidance import regex_to_lark

        return {"lark_grammar": f"start: /{regex_to_lark(self.text, _ASCII_DIGITS)}/"}


def read_rule(options: Mapping[str, Any]) -> Rule | None:
    """Returns the rule that the options of a request specify; None if there is none.

    Raises:
        RuleError: there are several rules, or a rule has another type or is too large.
    """
    values = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    if not values:
        return None
    if len(values) > 1:
        raise RuleError(f"{' and '.join(values)} are given; an answer can follow only one of {', '.join(OPTIONS)}")
    ((kind, value),) = values.items()
    text = {"json_schema": _schema, "regex": _regex, "grammar": _grammar, "choice": _choices}[kind](kind, value)
    size = len(_encoded(kind, text))
    if size > MAX_BYTES:
        raise RuleError(f"{kind} has {show_bytes(size)}; the limit is {show_bytes(MAX_BYTES)}")
    return Rule(kind, text)


def _schema(name: str, argument: Any) -> str:
    value = argument
    if value is True:
        value = _ANY_OBJECT
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            raise RuleError(f"{name} is not JSON: {exc}") from exc
    if not isinstance(value, Mapping):
        raise RuleError(
            f"{name} is {show(argument)}; it must be a JSON schema, as a dictionary or JSON text, or True for any "
            "object"
        )
    if "x-guidance" in value:
        raise RuleError(f"{name} has the key 'x-guidance', which is not a keyword of JSON schemas; remove it")
    try:
        schema = json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False))
        schema = _supported(name, schema)
        text = json.dumps(schema, ensure_ascii=False)
        numbers: list[int] = []
        json.loads(text, parse_int=lambda digits: numbers.append(int(digits)))
    except (TypeError, ValueError, RecursionError) as exc:
        if isinstance(exc, RuleError):
            raise
        raise RuleError(f"{name} cannot be written as JSON: {exc}") from exc
    largest = max(map(abs, numbers), default=0)
    if largest > _MAX_INTEGER:  # llguidance rounds such numbers to float64
        raise RuleError(
            f"{name} has the number {show(largest)}{_place(schema, largest)}; the largest number that is exact is "
            f"{_MAX_INTEGER}"
        )
    _check_bounds(name, schema)
    return text


def _supported(name: str, schema: Any) -> Any:
    """Returns a schema as llguidance reads it."""
    try:
        return supported_form(schema)
    except RuleError as exc:
        raise RuleError(f"{name} cannot be used: {exc}") from None


def _check_bounds(name: str, schema: Any) -> None:
    """Refuses an excluded integer and another bound less than 1 farther from 0: llguidance would allow the integer.

    The bounds of a number may be in different parts of a schema, so each is compared with all others.
    """
    low, excluded_low = _bounds(schema, "minimum", "exclusiveMinimum")
    high, excluded_high = _bounds(schema, "maximum", "exclusiveMaximum")
    above = {math.floor(x) for x in high if x != int(x)}
    below = {math.ceil(x) for x in low if x != int(x)}
    near = [("exclusiveMinimum", value) for value in excluded_low & above if value >= 0]
    near += [("exclusiveMaximum", value) for value in excluded_high & below if value <= 0]
    for key, value in near:
        raise RuleError(
            f"{name} has {key} {show(value)} and another bound less than 1 from it, which is not supported for an "
            "integer; replace it by an inclusive bound next to it"
        )


def _bounds(schema: Any, inclusive: str, exclusive: str) -> tuple[set[float], set[float]]:
    """Returns all bounds in a schema under two keywords, and those of them that are excluded."""
    bounds, excluded, parts = set[float](), set[float](), [schema]
    while parts:
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if isinstance(part, dict):
            bound, limit = part.get(inclusive), part.get(exclusive)
            limit = bound if limit is True else limit  # draft 4
            bounds |= {value for value in (bound, limit) if _is_number(value)}
            excluded |= {limit} if _is_number(limit) else set()
    return bounds, excluded


def _place(schema: Any, number: int) -> str:
    """Returns " in ...", with the keyword whose value is a number or its negative."""
    parts: list[tuple[str, Any]] = [("", schema)]
    while parts:
        keyword, part = parts.pop()
        if isinstance(part, Mapping):
            parts += part.items()
        elif isinstance(part, list | tuple):
            parts += [(keyword, item) for item in part]
        elif _is_number(part) and abs(part) == number:
            return f" in {keyword}"
    return ""


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the members of a JSON object; raises ValueError if a key occurs twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        key = next(key for index, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:index]))
        raise ValueError(f"an object has the key {show(key)} twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RuleError(f"{name} is {show(value)}; it must be a text that is not empty")
    return value


def _grammar(name: str, value: Any) -> str:
    text = _text(name, value)
    attribute = _ATTRIBUTE.search(text)
    if attribute is not None:
        raise RuleError(
            f"{name} has a rule with the attribute {attribute[1]}, which is not supported; remove it, or use the "
            f"option {attribute[1]} of the request"
        )
    parts, end = [], 0
    for start in re.finditer(r"%json\s*", text):
        if start.start() < end:  # inside another schema
            continue
        try:
            schema, stop = json.JSONDecoder().raw_decode(text, start.end())
        except (ValueError, RecursionError):  # llguidance reports errors of the syntax, with their positions
            continue
        _check_bounds(name, schema)
        parts += [text[end : start.end()], json.dumps(_supported(name, schema), ensure_ascii=False)]
        end = stop
    return "".join([*parts, text[end:]])


def _regex(name: str, value: Any) -> str:
    text = _text(name, value)
    if re.search(r"\(\?[a-zA-Z]*x", text):  # llguidance replaces line ends, which end comments
        raise RuleError(f"{name} is {show(value)}; the flag x is not supported. Remove it and the spaces and comments")
    return text


def _choices(name: str, value: Any) -> str:
    """Returns a regular expression that matches the choices: for a large number of them, it is faster than a rule."""
    choices = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
    if not choices or not all(isinstance(item, str) and item for item in choices):
        raise RuleError(f"{name} is {show(value)}; it must be a list of texts, each at least one character")
    return "|".join(_escaped(item) for item in dict.fromkeys(choices))


def _escaped(text: str) -> str:
    """Returns a regular expression that matches only `text`, in the syntax of the Rust crate regex."""
    return re.sub(r"[^0-9A-Za-z_]", lambda match: f"\\x{{{ord(match[0]):x}}}", text)


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise RuleError(f"{name} is not valid Unicode: {exc}") from exc
