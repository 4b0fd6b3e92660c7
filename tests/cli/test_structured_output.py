"""The options --json-schema, --regex, --grammar and --choice of `puna generate` and `puna run`."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_cli import as_json, run

pytest.importorskip("llguidance")

SCHEMA = '{"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0}, "minItems": 2, "maxItems": 2}'


def test_a_schema_is_json_or_a_file(tiny_model, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(SCHEMA)
    for schema in (SCHEMA, str(path)):
        out = as_json("generate", "the llama", "-m", str(tiny_model), "--json-schema", schema)
        assert out["finish_reason"] == "stop"
        assert all(0 <= item <= 9 for item in json.loads(out["text"]))


def test_expressions_grammars_and_choices(tiny_model, tmp_path):
    path = tmp_path / "rule.lark"
    path.write_text('start: "x" /[0-9]/')
    model = ("-m", str(tiny_model))
    assert as_json("generate", "the", *model, "--regex", "y{3}")["text"] == "yyy"
    assert as_json("generate", "the", *model, "--grammar", str(path))["text"] in [f"x{i}" for i in range(10)]
    assert as_json("generate", "the", *model, "--choice", "left", "--choice", "right")["text"] in ("left", "right")
    assert as_json("run", str(tiny_model), "the", "--choice", "up")["text"] == "up"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regex", "a", "--choice", "b"], "regex and choice are given"),
        (["--json-schema", '{"a": 1, "a": 2}'], "the key 'a' twice"),
        (["--json-schema", "missing.json"], "missing.json cannot be read"),
        (["--grammar", "missing.lark"], "missing.lark cannot be read"),
        (["--regex", "a("], "unclosed group"),
    ],
)
def test_invalid_values_are_errors(tiny_model, arguments, message):
    result = run("generate", "the", "-m", str(tiny_model), *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
