"""Patterns of JSON schemas match the same texts as Python's regular expressions, however characters are escaped."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from puna.errors import RequestError
from puna.grammars.patterns import rust_expression
from puna.grammars.rules import read_rule

pytest.importorskip("llguidance")
from puna.grammars.library import byte_tokenizer, make_matcher

CHARACTERS = '"\\/\n\t\b\x7faz A,é\u2028😀\r[]&-~^0٣_.<+'

PATTERNS = [
    '^[^,"]+$', '^[^"]+$', r"^[^\\]+$", '^[^a"]+$', r'^[^"\\]+$', "^[^a]+$", r"^[^\n]+$", "^.+$", r"^[a-z\\]+$",
    "^[ -~]+$", "^[!#-~]+$", r"^\S+$", r"^\W+$", r"^\D+$", r"^[^\x00-\x1f]+$", '"', r'^[^\w"]$', r'^[^\d"]$',
    '^[^"a]?b$', "^[[a]+$", "^[a[b]$", "^[a&&b]+$", "^[+--]+$", "^[--/]+$", r"^[a\-z]+$", "^[a~~b]$",
    "^[^[]$", r"^\<a$", r"^[\x00-\x1fa]+$", r'^[^\s"]$', r"^[\]a]$", "^[a^]$", r"^[\s\S]$",
]  # fmt: skip


def spellings(character: str) -> set[str]:
    """Returns how a JSON string may spell a character."""
    escaped = {json.dumps(character)[1:-1], json.dumps(character, ensure_ascii=False)[1:-1]}
    return escaped | ({f"\\u{ord(character):04x}"} if ord(character) < 0x10000 else set())


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # Python reserves [[ and similar texts
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_python_matches(pattern):
    rule = read_rule({"json_schema": {"type": "string", "pattern": pattern}})
    assert rule is not None
    matcher, error = make_matcher(rule.grammar, byte_tokenizer())
    assert error is None
    python = re.compile(pattern.replace("$", r"\Z"))
    for character in CHARACTERS:
        for before, after in (("", ""), ("a", ""), ("", "b"), ("é", "é")):
            accepted = []
            for spelling in spellings(character):
                state = matcher.deep_copy()
                document = f'"{before}{spelling}{after}"'.encode()
                accepted.append(all(map(state.consume_token, document)) and state.is_accepting())
            expected = python.search(before + character + after) is not None
            assert any(accepted) == expected, (before, character, after)
            assert expected or not any(accepted), (before, character, after)


def test_an_excluded_quote_is_not_allowed_in_its_escaped_form():
    schema = {"type": "string", "pattern": '^[^,"]+$'}
    rule = read_rule({"json_schema": schema})
    matcher, _ = make_matcher(rule.grammar, byte_tokenizer())
    document = r'"a\"b"'
    assert not jsonschema.Draft202012Validator(schema).is_valid(json.loads(document))
    assert not all(map(matcher.consume_token, document.encode()))


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"^[a[b]$": {"pattern": "[a[b]"}}},
        {"properties": {"pattern": {"type": "string", "pattern": "[a[b]"}}},
        {"anyOf": [{"items": {"pattern": "[a[b]"}}], "$defs": {"pattern": {"pattern": "[a[b]"}}},
        {"items": [{"pattern": "[a[b]"}]},
    ],
)
def test_patterns_are_translated_in_schemas_of_all_depths(schema):
    rule = read_rule({"json_schema": schema})
    assert "[a[b]" not in rule.text and r"[a\\[b]" in rule.text


def test_names_and_values_that_look_like_patterns_are_kept():
    schema = {"properties": {"[a[b]": {"const": {"pattern": "[a[b]"}}}, "enum": [{"pattern": "[a[b]"}]}
    assert json.loads(read_rule({"json_schema": schema}).text) == schema


@pytest.mark.parametrize("pattern", ["[a", r"\x01", r"a\u0001", "\x01"])
def test_an_unsupported_pattern_is_an_error(pattern):
    with pytest.raises(RequestError, match="pattern"):
        read_rule({"json_schema": {"pattern": pattern}})


def test_hyphens_at_the_ends_of_a_class_are_literal():
    assert rust_expression("[-a]") == r"[\-a]"
    assert rust_expression("[a-]") == r"[a\-]"
    assert rust_expression(r"[\w-.]") == r"[\w\-.]"
