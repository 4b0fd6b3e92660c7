"""Strict JSON: refuses what JSON parsers interpret in different ways, and documents that are nested too deeply."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from puna.errors import show, show_json
from puna.server.errors import ApiError
from puna.server.tools.values import nearest_number, whole_characters

_INT64_END = 2**63

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.S)
"""A JSON string. The expression takes linear time, also for a string without an end."""
_LARGE = re.compile(rb"[0-9]{19}|[0-9][eE]")
"""A number that may be outside the range. Without one, numbers are read four times as fast."""
_BRACKET = re.compile(rb"[\[\]{}]")


def parse(body: bytes, depth: int) -> dict[str, Any]:
    """Returns the object in a request's body.

    Raises:
        ApiError: 400, if the body is not one JSON object in UTF-8, has NaN, Infinity, a number outside the range of
            float64 or int64, a repeated key, half a surrogate pair, or more than `depth` nested arrays and objects.
            In the input of an earlier call, which a model wrote, numbers are the nearest and characters are whole.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ApiError(400, f"the body is not UTF-8 at byte {exc.start}", code="invalid_json") from None
    _check_depth(body, depth)
    try:
        numbers: dict[str, Any] = {"parse_float": _float, "parse_int": _integer} if _LARGE.search(body) else {}
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, **numbers)
    except json.JSONDecodeError as exc:
        problem = f"{exc.msg} at line {exc.lineno}, column {exc.colno}"
        raise ApiError(400, f"the body is not valid JSON: {problem}", code="invalid_json") from None
    halves = b"\\ud" in body or b"\\uD" in body
    if b"tool_use" in body and (numbers or halves):
        document = _with_calls(document)
    if numbers or b"NaN" in body or b"Infinity" in body:
        _check_numbers(document)
    if halves:
        _check_unicode(document)
    if not isinstance(document, dict):
        raise ApiError(400, f"the body is {show_json(document)}; it must be a JSON object", code="invalid_json")
    return document


def _check_depth(body: bytes, limit: int) -> None:
    """Raises ApiError if arrays and objects are nested too deeply. Brackets inside strings do not count."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        if depth > limit:
            raise ApiError(400, f"the body has more than {limit} nested arrays and objects", code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"the key {show(repeated)} occurs twice in one object", code="invalid_json")
    return document


@dataclass(frozen=True)
class _Refused:
    """A number that is refused when its place in the document is known."""

    problem: str
    nearest: int | float | None = None


def _constant(text: str) -> _Refused:
    return _Refused(f"{text}, which is not a JSON number; give a number, or omit it")


def _float(text: str) -> float | _Refused:
    value = float(text)
    if math.isfinite(value):
        return value
    return _Refused(f"{text[:40]}, which is outside the range of float64", nearest_number(text))


def _integer(text: str) -> int | _Refused:
    if len(text) > 20 or not -_INT64_END <= int(text) < _INT64_END:
        return _Refused(
            f"{text[:40]}, which is outside the range of int64: {-_INT64_END} to {_INT64_END - 1}", nearest_number(text)
        )
    return int(text)


def _with_calls(value: Any, called: bool = False) -> Any:
    """Returns a value in which the input of each call has the nearest numbers and whole characters."""
    if isinstance(value, dict):
        use = value.get("type") == "tool_use"
        return {_with_calls(key, called): _with_calls(item, called or (use and key == "input"))
                for key, item in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_with_calls(item, called) for item in value]
    if called and isinstance(value, str):
        return whole_characters(value)
    return value.nearest if called and isinstance(value, _Refused) and value.nearest is not None else value


def _check_numbers(document: Any) -> None:
    """Raises ApiError for the first number that is refused; the error names the field."""
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, _Refused):
            raise ApiError(400, f"{path or 'the body'} is {item.problem}", param=path or None, code="invalid_json")
        if isinstance(item, dict):
            entries = [(f"{path}.{key[:40]}" if path else key[:40], value) for key, value in item.items()]
        else:
            entries = (
                [(f"{path}[{index}]", value) for index, value in enumerate(item)] if isinstance(item, list) else []
            )
        stack += reversed(entries)


def _check_unicode(value: Any) -> None:
    """Raises ApiError if a text has half a surrogate pair, which is not a character."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, str) and any("\ud800" <= character <= "\udfff" for character in item):
            raise ApiError(400, "a text in the body has half of a surrogate pair (\\ud800 to \\udfff)",
                           code="invalid_json")  # fmt: skip
