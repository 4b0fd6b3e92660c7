"""Calls of functions: formats detected from chat templates, grammars, and the parser, against each other."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from puna.server.tools.formats import FALLBACK, ToolFormat, detect
from puna.server.tools.grammar import arguments_schema, tool_grammar
from puna.server.tools.history import with_tools
from puna.server.tools.parser import CallArguments, CallStart, Text, ToolParser
from puna.server.tools.toolset import Function, ToolSet
from tests.server.tools.chat_templates import EXAMPLES

pytest.importorskip("llguidance")
from puna.grammars.library import byte_tokenizer, make_matcher, special_name

WEATHER = Function(
    "weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "pattern": "^[A-Za-zö]{1,8}$"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "hourly": {"type": "boolean"},
            "units": {"type": ["string", "null"], "maxLength": 2},
            "near": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        },
        "required": ["city"],
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number", "minimum": 0, "maximum": 9}},
                            "required": ["x"], "additionalProperties": False}},
    },
)  # fmt: skip
NOW = Function("now")
FREE = Function("free.form", {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9}})
TOOLS = ToolSet((WEATHER, NOW, FREE))

FORMATS = {name: detect(example.tokenizer) for name, example in EXAMPLES.items()}


class Grammar:
    """A grammar of texts in which special tokens are shown."""

    def __init__(self, tools: ToolSet, form: ToolFormat, text: Any = None) -> None:
        lark = tool_grammar(tools, form, text)
        self._special = [*form.special, *([form.optional] if form.optional else [])]
        names = map(special_name, self._special)
        self._matcher, error = make_matcher({"lark_grammar": lark}, byte_tokenizer(names))
        assert error is None, (error, lark)

    def accepts(self, text: str) -> bool:
        state, rest = self._matcher.deep_copy(), text
        while rest:
            special = next((i for i, name in enumerate(self._special) if rest.startswith(name)), None)
            tokens = list(rest[0].encode()) if special is None else [256 + special]
            rest = rest[1:] if special is None else rest[len(self._special[special]) :]
            if not all(map(state.consume_token, tokens)):
                return False
        return bool(state.is_accepting())

    def random_text(self, rng: random.Random) -> str | None:
        """Returns a random text that follows the grammar; None if it becomes too long."""
        state, result, mask = (
            self._matcher.deep_copy(),
            bytearray(),
            np.zeros(-(-(257 + len(self._special)) // 32), np.uint32),
        )
        while len(result) < 3000:
            if state.is_accepting() and (state.is_stopped() or rng.random() < 0.5):
                return result.decode()
            state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
            allowed = [token for token in allowed if token < 256 + len(self._special)]
            likely = [token for token in allowed if token > 255 or token in b'"}])']
            plain = [token for token in allowed if 32 <= token < 127 or token > 255] or allowed
            token = rng.choice(likely if likely and rng.random() < 0.3 else plain)
            result += bytes([token]) if token < 256 else self._special[token - 256].encode()
            assert state.consume_token(token)
        return None


def parse(text: str, tools: ToolSet, form: ToolFormat, rng: random.Random, reason: str = "stop", **options: Any):
    """Returns the text, the calls as (id, name, arguments), and the reason, of a text that arrives in parts."""
    parser = ToolParser(tools, form, **options)
    pieces, start = [], 0
    while start < len(text):
        end = start + rng.choice([1, 2, 5, 40])
        pieces += parser.feed(text[start:end])
        start = end
    last, reason = parser.finish(reason)
    content, calls = "", []
    for piece in [*pieces, *last]:
        if isinstance(piece, Text):
            assert not calls
            content += piece.text
        elif isinstance(piece, CallStart):
            assert piece.index == len(calls)
            calls.append([piece.id, piece.name, ""])
        else:
            assert isinstance(piece, CallArguments) and piece.index == len(calls) - 1
            calls[-1][2] += piece.text
    return content, [tuple(call) for call in calls], reason


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_format_is_that_of_the_template(name):
    example, form = EXAMPLES[name], FORMATS[name]
    grammar = Grammar(TOOLS, form)
    assert grammar.accepts(example.one)
    assert grammar.accepts("An answer.") and grammar.accepts("")
    required = Grammar(replace(TOOLS, mode="required"), form)
    assert required.accepts(example.one) and not required.accepts("An answer.") and not required.accepts("")
    if example.two is not None:
        assert grammar.accepts(example.two) and required.accepts(example.two)
        for mode in ("auto", "required"):
            single = Grammar(replace(TOOLS, mode=mode, parallel=False), form)
            assert single.accepts(example.one) and not single.accepts(example.two)
    none = Grammar(replace(TOOLS, mode="none"), form)
    assert none.accepts("An answer.") and not none.accepts(example.one)
    named = Grammar(replace(TOOLS, mode="required", allowed=("now",)), form)
    assert not named.accepts(example.one)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("seed", [0, 1])
def test_calls_are_parsed_however_the_text_is_divided(name, seed):
    example, form = EXAMPLES[name], FORMATS[name]
    rng = random.Random(seed)
    for text, expected in ((example.one, ["weather"]), (example.two, ["weather", "now"])):
        if text is not None:
            content, calls, reason = parse(text, TOOLS, form, rng)
            assert (content, reason) == ("", "tool_calls")
            assert [call[1] for call in calls] == expected
            assert [call[2] for call in calls] == ['{"city": "Köln", "days": 2}', "{}"][: len(calls)]
            assert len({call[0] for call in calls}) == len(calls)
            required = parse(text, replace(TOOLS, mode="required"), form, rng)
            assert [call[1:] for call in required[1]] == [call[1:] for call in calls] and required[2] == "tool_calls"
    for plain in ("An answer.", "", '{"x": 1}', "[1, 2]", "<tool", "2 < 3 [ok"):
        assert Grammar(TOOLS, form).accepts(plain)
        assert parse(plain, TOOLS, form, rng) == (plain, [], "stop")


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_random_answers_have_calls_with_valid_arguments(name, mode):
    form, tools = FORMATS[name], replace(TOOLS, mode=mode)
    grammar, rng, calls = Grammar(tools, form), random.Random(name + mode), []
    schemas = {item.name: arguments_schema(item.parameters) for item in tools.functions}
    for _ in range(25):
        text = grammar.random_text(rng)
        if text is None:
            continue
        content, found, reason = parse(text, tools, form, rng)
        assert (reason == "tool_calls") == bool(found) or reason == "invalid"
        assert content == "" or mode == "auto"
        for _, function, arguments in found if reason == "tool_calls" else []:
            jsonschema.Draft202012Validator(schemas[function]).validate(json.loads(arguments))
            calls.append(function)
    assert len(set(calls)) == 3 or mode == "auto"


def test_text_may_precede_marked_calls_only():
    rng = random.Random(0)
    for name in ("Hermes and Qwen", "Mistral", "Mistral 11", "functions in tags, text arguments"):
        example, form = EXAMPLES[name], FORMATS[name]
        text = "Let me look.\n\n" + example.one
        assert Grammar(TOOLS, form).accepts(text)
        content, calls, reason = parse(text, TOOLS, form, rng)
        assert content == "Let me look." and len(calls) == 1 and reason == "tool_calls"
    example, form = EXAMPLES["Llama 3.1"], FORMATS["Llama 3.1"]
    content, calls, reason = parse("Look: " + example.one, TOOLS, form, rng)
    assert content == "Look: " + example.one and not calls and reason == "stop"


def test_a_special_token_may_precede_calls_of_llama_3():
    example, form = EXAMPLES["Llama 3.1"], FORMATS["Llama 3.1"]
    text = "<|python_tag|>" + example.one
    assert Grammar(TOOLS, form).accepts(text)
    assert [call[1] for call in parse(text, TOOLS, form, random.Random(1))[1]] == ["weather"]


def test_an_incomplete_call_is_reported():
    for name, example in EXAMPLES.items():
        for reason, expected in (("stop", "invalid"), ("length", "length")):
            cut = example.one[: example.one.index("Köln") + 2]
            _, calls, end = parse(cut, TOOLS, FORMATS[name], random.Random(2), reason)
            assert [call[1] for call in calls] == ["weather"] and end == expected, name


def test_repeated_keys_are_reported():
    text = '<tool_call>\n{"name": "free.form", "arguments": {"a": 1, "a": 2}}\n</tool_call>'
    assert Grammar(TOOLS, FALLBACK).accepts(text)
    assert parse(text, TOOLS, FALLBACK, random.Random(3))[2] == "invalid"


def test_python_arguments_become_json():
    form = FORMATS["Llama 3.2, Python"]
    cases = {
        '[weather(city="K", hourly=True, units=None)]': {"city": "K", "hourly": True, "units": None},
        '[weather(city="K", near=[{"x": 1.5}])]': {"city": "K", "near": [{"x": 1.5}]},
        '[weather(city="a", units="),")]': {"city": "a", "units": "),"},
        '[free.form(**{"a": 1})]': {"a": 1},
    }
    for text, expected in cases.items():
        assert Grammar(TOOLS, form).accepts(text), text
        _, calls, reason = parse(text, TOOLS, form, random.Random(4))
        assert json.loads(calls[0][2]) == expected and reason == "tool_calls"
    assert not Grammar(TOOLS, form).accepts("[weather(days=1)]")
    assert not Grammar(TOOLS, form).accepts('[weather(days=1, city="K")]')


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_follows_a_schema_or_calls_functions(name):
    form = FORMATS[name]
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/t"}}, "additionalProperties": False,
              "$defs": {"t": {"type": "null"}}}  # fmt: skip
    grammar = Grammar(TOOLS, form, schema)
    answer = '{"a": null}' if name == "Llama 3.1" else '{"a":null}'
    assert grammar.accepts(EXAMPLES[name].one) and grammar.accepts(answer)
    assert not any(map(grammar.accepts, ("Hello", '{"a": 1}', '{"a":1}', "")))
    rng = random.Random(5)
    assert parse(answer, TOOLS, form, rng, free_text=False) == (answer, [], "stop")
    assert [call[1] for call in parse(EXAMPLES[name].one, TOOLS, form, rng, free_text=False)[1]] == ["weather"]
    assert Grammar(TOOLS, form, "/yes|no/").accepts("no") and not Grammar(TOOLS, form, "/yes|no/").accepts("maybe")


HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "tool_calls": [
        {"id": "call_1234567890", "type": "function",
         "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 2}'}},
    ]},
    {"role": "tool", "tool_call_id": "call_1234567890", "content": "sunny"},
    {"role": "user", "content": "Thanks."},
]  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_earlier_calls_are_written_as_the_model_writes_them(name):
    example, form = EXAMPLES[name], FORMATS[name]
    messages, descriptions = with_tools(HISTORY, form, TOOLS)
    if form.renders_calls:
        arguments = messages[2]["tool_calls"][0]["function"]["arguments"]
        assert isinstance(arguments, str) == (form.arguments == "text")
    rendered = example.tokenizer.apply_chat_template(messages, tools=descriptions, tokenize=False)
    expected = example.one.replace("days=2", 'days="2"')  # the template of the example quotes all values
    if "Mistral" in name and form.short_ids:
        expected = expected.replace("Abc123xyz", messages[2]["tool_calls"][0]["id"])
        assert messages[3]["tool_call_id"] == messages[2]["tool_calls"][0]["id"]
    assert expected in rendered
    assert all(text in rendered for text in ("sunny", "Thanks.", '"weather"', '"free.form"'))


def test_instructions_describe_functions_where_the_template_does_not():
    messages, descriptions = with_tools(HISTORY[:2], FALLBACK, TOOLS)
    assert descriptions is None and messages[0]["content"].startswith("Be brief.\n\n")
    lines = [line for line in messages[0]["content"].splitlines() if line.startswith('{"name": "')]
    assert [json.loads(line)["name"] for line in lines[:3]] == ["weather", "now", "free.form"]
    assert with_tools(HISTORY[1:2], FALLBACK, TOOLS)[0][0]["role"] == "system"
    roles = [message["role"] for message in with_tools(HISTORY, FALLBACK, TOOLS)[0]]
    assert roles == ["system", "user", "assistant", "user"]
