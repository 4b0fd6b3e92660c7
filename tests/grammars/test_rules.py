"""The options `json_schema`, `regex`, `grammar` and `choice`: their types and limits, and rules that are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from puna.errors import BackendError, RequestError
from puna.grammars.rules import MAX_BYTES, read_rule

needs_llguidance = pytest.mark.usefixtures("llguidance")


@pytest.fixture
def llguidance():
    return pytest.importorskip("llguidance")


def test_without_an_option_there_is_no_rule():
    assert read_rule({}) is read_rule({"regex": None, "max_tokens": 3}) is None


def test_the_text_of_a_schema_is_that_of_its_dictionary():
    assert read_rule({"json_schema": '{"type": "null"}'}) == read_rule({"json_schema": {"type": "null"}})
    assert read_rule({"json_schema": True}) == read_rule({"json_schema": {"type": "object"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a", "choice": ["a"]}, "regex and choice are given"),
        ({"json_schema": False}, "json_schema is False"),
        ({"json_schema": "true"}, "json_schema is 'true'"),
        ({"json_schema": [1]}, r"json_schema is \[1\]"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": '{"a": NaN}'}, "NaN is not a JSON number"),
        ({"json_schema": '{"a": 1, "a": 2}'}, "the key 'a' twice"),
        ({"json_schema": "[" * 100_000}, "json_schema is not JSON"),
        ({"json_schema": {"const": float("inf")}}, "cannot be written as JSON"),
        ({"json_schema": {"const": {1, 2}}}, "cannot be written as JSON"),
        ({"json_schema": {"const": "\ud800"}}, "not valid Unicode"),
        ({"regex": ""}, "regex is ''"),
        ({"regex": 3}, "regex is 3"),
        ({"regex": "(?x) a # b"}, "flag x"),
        ({"regex": "a" * (MAX_BYTES + 1)}, "the limit is"),
        ({"grammar": b"start: x"}, "grammar is b'start"),
        (
            {"grammar": 'start: "a" %json {"type": "number", "exclusiveMinimum": 3, "maximum": 3.5} "b"'},
            "grammar has exclusiveMinimum 3 and another bound",
        ),
        ({"grammar": "start: x\nx[max_tokens=5]: /a*/"}, "attribute max_tokens, which is not supported"),
        ({"grammar": 'start: x\n ?x [stop="]", temperature = 0.5]: /a*/'}, "the option temperature of the request"),
        ({"choice": []}, r"choice is \[\]"),
        ({"choice": "yes"}, "choice is 'yes'"),
        ({"choice": ["a", ""]}, "each at least one character"),
        ({"choice": ["a", 1]}, "each at least one character"),
    ],
)
def test_invalid_options_are_errors(options, message):
    with pytest.raises(RequestError, match=message):
        read_rule(options)


@needs_llguidance
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "a("}, r"regex cannot be used: at 1\(8\): .*unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences are not supported"),
        ({"regex": r"[^\s\S]"}, "no text follows it"),
        ({"grammar": 'start: "a" b'}, r'at 1\(\d+\): unknown name: "b"'),
        ({"grammar": 'begin: "a"'}, "no start rule"),
        ({"grammar": 'start: "a'}, "lexer error"),
        ({"grammar": 'start: start "a"'}, "no text follows it"),
        ({"grammar": 'start: %json {"uniqueItems": true, "type": "array"}'}, "uniqueItems"),
        ({"json_schema": {"type": "integer", "multipleOf": 1_000_003}}, "needs too much (time|memory)"),
        ({"grammar": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(9000)) + '\nr9000: "a"'}, "depth"),
        ({"grammar": "start: " + "(" * 100_000}, "grammar cannot be used"),
        ({"regex": "(" * 100_000 + "a" + ")" * 100_000}, "regex cannot be used"),
    ],
)
def test_rules_that_cannot_be_compiled_are_refused(options, message):
    from puna.grammars.check import check_rule

    rule = read_rule(options)
    assert rule is not None
    with pytest.raises(RequestError, match=f"(?s){message}"):
        check_rule(rule.kind, rule.grammar, [])


@needs_llguidance
def test_a_failure_of_the_process_is_reported_with_its_reason():
    from puna.grammars.check import check_rule

    with pytest.raises(BackendError, match="failed: UnicodeEncodeError"):
        check_rule("regex", {"regex": "a"}, ["\ud800"])


@needs_llguidance
def test_ordinary_rules_pass_the_check():
    from puna.grammars.check import check_rule

    options = ({"choice": [f"choice number {i}" for i in range(2000)]}, {"grammar": 'start: <|call|> "a"'})
    for rule in map(read_rule, options):
        assert rule is not None
        check_rule(rule.kind, rule.grammar, ["<|call|>"])


def test_without_llguidance_an_error_names_the_extra(tiny_model):
    program = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from puna import LLM\n"
        f"llm = LLM({str(tiny_model)!r})\n"
        "assert llm.generate('the', max_tokens=1).ids\n"
        "llm.generate('the', regex='a')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "MissingExtraError: structured output needs llguidance; install it with: pip install 'puna[grammar]'" in (
        result.stderr
    )
