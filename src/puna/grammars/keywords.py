"""Finds the keyword of a JSON schema to which an error of llguidance refers."""

from __future__ import annotations

import re

_KEYWORDS = (
    (r'Unimplemented keys: \["([^"]+)"', ""),
    (r"Expected .* for '(\$?\w+)'", ""),
    (r"oneOf constraints", "oneOf"),
    (r"Unknown format|format", "format"),
    (r"patternProperty", "patternProperties"),
    (r"look-?around|in regex|regex parse error|if regex is empty|the pattern", "pattern"),
    (r"min/maxProperties", "minProperties"),
    (r"(minLength|maxLength|minItems|maxItems|minimum|maximum|multipleOf|exclusiveMinimum|exclusiveMaximum)", ""),
    (r"required property", "required"),
    (r"circular references|[Rr]ef\b|[Rr]eference|[Rr]esource|[Pp]ointer|remote|Retriev|failed to resolve", "$ref"),
    (r"anyOf", "anyOf"),
    (r"allOf", "allOf"),
    (r"enum|const", "enum"),
    (r"(additionalProperties|additionalItems|patternProperties|properties|prefixItems|items)", ""),
    (r"\btypes?\b", "type"),
)
"""Expressions in errors, and the keyword; "" if the expression's group is the keyword."""


def keyword_of(error: str, schema: str) -> str | None:
    """Returns the keyword of a JSON schema that an error is about; None if the error does not show one.

    Args:
        schema: the schema as JSON text.
    """
    for expression, keyword in _KEYWORDS:
        match = re.search(expression, error)
        if match is not None:
            result = keyword or match[1]
            return "patternProperties" if result == "pattern" and '"pattern"' not in schema else result
    return None


def with_keyword(error: str, schema: str) -> str:
    """Returns an error about a JSON schema that names the keyword."""
    keyword = keyword_of(error, schema)
    return f"the keyword {keyword!r} is not supported here: {error}" if keyword is not None else error
