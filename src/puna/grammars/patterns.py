"""Regular expressions of JSON schemas (ECMA 262) in the syntax of the Rust crate regex, which llguidance reads.

The crate reads `[`, `&&`, `--` and `~~` in classes as operations on sets, and `\\<` and `\\>` as assertions. Where
implementations of JSON Schema differ in the meaning of \\S, \\W and \\D, the expression matches what all of them match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from puna.errors import RuleError, show

_FURTHER = {"s": r"\x1c-\x1f\x{85}\x{feff}", "w": r"\p{L}\p{M}\p{N}\p{Pc}", "d": r"\p{Nd}"}
"""Characters that some implementations count as \\s, \\w or \\d."""

_ESCAPE = re.compile(r"\\(?:[pP]\{[^}]*\}|[pP].|x\{[^}]*\}|x..|u\{[^}]*\}|u.{4}|.)", re.S)

_HOLE = r"\x01"
"""llguidance 1.9 lets a class that contains all control characters match an escaped quote and an escaped backslash,
even if the class excludes them. Classes therefore never match this character."""

_LITERAL_HOLE = re.compile(r"\x01|\\x01|\\u0001|\\[xu]\{0*1\}")


def rust_expression(pattern: str) -> str:
    """Returns an expression that matches what an expression of a JSON schema matches.

    Raises:
        RuleError: the expression ends inside a class, or names the control character U+0001.
    """
    result, index = [], 0
    while index < len(pattern):
        if pattern[index] == "[":
            text, index = _class(pattern, index)
        elif match := _ESCAPE.match(pattern, index):
            text, index = _escape(match[0]), match.end()
        else:
            text, index = pattern[index], index + 1
        if _LITERAL_HOLE.fullmatch(text):
            raise RuleError(f"the pattern {show(pattern)} has the control character U+0001, which is not supported")
        result.append(text)
    return "".join(result)


def _escape(text: str) -> str:
    """Returns an escape outside a class."""
    kind = text[1:2]
    if kind in "<>" and kind:
        return kind
    if kind in "SWD" and kind:
        return f"[[^{_FURTHER[kind.lower()]}\\{kind.lower()}]--{_HOLE}]"
    return f"[{text}--{_HOLE}]" if kind in "pP" and kind else text


def _class(pattern: str, start: int) -> tuple[str, int]:
    """Returns the class that begins at an index, and the index after it."""
    index = start + 1
    negated = pattern.startswith("^", index)
    index += negated
    items: list[str] = []
    while not (pattern.startswith("]", index) and items):
        match = _ESCAPE.match(pattern, index)
        item = match[0] if match else pattern[index : index + 1]
        if not item:
            raise RuleError(f"the pattern {show(pattern)} has a class without an end")
        index += len(item)
        items.append(item if match else _character(item))
    body = "".join(_ranges(items))
    if negated:
        body += "".join(text for kind, text in _FURTHER.items() if f"\\{kind}" in items)
        return f"[[^{body}]--{_HOLE}]", index + 1
    wide = any(item[0] < " " or (item[0] == "\\" and item[1:2] in "SWDpPxu0") for item in items)
    return (f"[[{body}]--{_HOLE}]" if wide else f"[{body}]"), index + 1


def _character(character: str) -> str:
    return f"\\{character}" if character in "[]&~^" else character


def _ranges(items: list[str]) -> Iterator[str]:
    """Yields the items of a class; a hyphen that is not between the ends of a range is escaped."""
    index = 0
    while index < len(items):
        first = r"\-" if items[index] == "-" else items[index]
        if index + 2 < len(items) and items[index + 1] == "-" and not (_is_set(first) or _is_set(items[index + 2])):
            last = r"\-" if items[index + 2] == "-" else items[index + 2]
            yield f"{first}-{last}"
            index += 3
        else:
            yield first
            index += 1


def _is_set(item: str) -> bool:
    return item[0] == "\\" and item[1:2] in "sSwWdDpP"
