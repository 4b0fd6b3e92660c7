"""Rewrites JSON schemas for llguidance: removes annotations and keywords without effect, and keeps the meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from puna.errors import RuleError
from puna.grammars.patterns import rust_expression

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose values are schemas by name."""

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")

_SCHEMAS = (
    "items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip

_ANNOTATIONS = frozenset(("title", "description", "default", "example", "examples", "$comment"))

_NO_EFFECT: tuple[tuple[str, Any], ...] = (
    ("uniqueItems", False), ("unevaluatedProperties", True), ("unevaluatedItems", True), ("propertyNames", True),
    ("propertyNames", {}), ("not", False), ("dependentRequired", {}), ("dependentSchemas", {}), ("dependencies", {}),
)  # fmt: skip
"""Keywords that llguidance does not support, with values that allow everything."""


def supported_form(schema: Any) -> Any:
    """Returns an equal schema with fewer keywords that llguidance does not support.

    Raises:
        RuleError: a pattern is not supported, or an enumeration is empty.
    """
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key not in _ANNOTATIONS and not _has_no_effect(key, value):
            result[key] = _supported_value(key, value)
    if isinstance(result.get("oneOf"), list) and "anyOf" not in result and _are_disjoint(result["oneOf"]):
        result["anyOf"] = result.pop("oneOf")
    return result


def _has_no_effect(key: str, value: Any) -> bool:
    return any(key == name and type(value) is type(none) and value == none for name, none in _NO_EFFECT)


def _supported_value(key: str, value: Any) -> Any:
    if key == "pattern" and isinstance(value, str):
        return rust_expression(value)
    if key == "enum" and value == []:
        raise RuleError("the keyword 'enum' is an empty list, which no value satisfies")
    if key in _MAPS and isinstance(value, dict):
        names = map(rust_expression, value) if key == "patternProperties" else iter(value)
        return dict(zip(names, map(supported_form, value.values()), strict=True))
    if (key in _LISTS or key in _SCHEMAS) and isinstance(value, list):
        return [supported_form(item) for item in value]
    return supported_form(value) if key in _SCHEMAS else value


def _are_disjoint(schemas: Sequence[Any]) -> bool:
    """Returns whether no value is valid under two of the schemas, because each lists its values."""
    values: list[Any] = []
    for schema in schemas:
        listed = schema if isinstance(schema, dict) else {}
        options = listed["enum"] if isinstance(listed.get("enum"), list) else [listed.get("const")]
        if not ("enum" in listed or "const" in listed) or not all(isinstance(item, str) for item in options):
            return False
        values += options
    return len(set(values)) == len(values)
