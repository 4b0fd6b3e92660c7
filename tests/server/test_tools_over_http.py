"""Tools, response formats and both together over HTTP: calls are valid, streams and answers agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.server.live import tool_checkpoint

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Köln", "Rio"]}, "days": {"type": "integer", "maximum": 9,
                                                                                  "minimum": 0}},
    "required": ["city"],
}  # fmt: skip
PLACE = {"type": "object", "properties": {"x": {"type": "number", "minimum": 0, "maximum": 9}}, "required": ["x"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "place", "parameters": PLACE, "strict": True}},
]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server whose model has a chat template with tools."""
    from starlette.testclient import TestClient

    from puna import AsyncLLM
    from puna.server.app import create_app
    from puna.server.service import Service
    from puna.server.settings import ServerSettings

    path: Path = tool_checkpoint(tmp_path_factory.mktemp("model"))
    model, settings = AsyncLLM(path, "native"), ServerSettings(name="golden")
    with TestClient(create_app(Service(model, settings), settings), "http://127.0.0.1:8000") as client:
        yield client
    model.close()


def chat(server: Any, **fields: Any) -> Any:
    body = {
        "model": "golden", "messages": [{"role": "user", "content": "The weather?"}], "max_tokens": 120,
        "temperature": 1.5, "seed": 1,
    }  # fmt: skip
    return server.post("/v1/chat/completions", json=body | fields)


def streamed(server: Any, **fields: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Returns the text, the calls and the finish reason of a stream, put together as clients do it."""
    response = chat(server, stream=True, **fields)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert response.status_code == 200 and lines[-1] == "[DONE]", response.text
    text, calls, reason, role = "", [], "", []
    for line in lines[:-1]:
        (choice,) = json.loads(line)["choices"]
        delta, reason = choice["delta"], choice["finish_reason"] or reason
        role += [delta["role"]] if "role" in delta else []
        text += delta.get("content") or ""
        for part in delta.get("tool_calls", []):
            if "id" in part:
                assert part["index"] == len(calls) and part["type"] == "function"
                assert part["function"]["arguments"] == ""
                calls.append({"name": part["function"]["name"], "arguments": "", "id": part["id"]})
            else:
                assert set(part) == {"index", "function"} and part["index"] == len(calls) - 1
                calls[-1]["arguments"] += part["function"]["arguments"]
    assert role == ["assistant"]
    return text, calls, reason


def check_calls(calls: list[dict[str, Any]]) -> None:
    schemas = {"weather": WEATHER, "place": PLACE}
    for call in calls:
        jsonschema.Draft202012Validator(schemas[call["name"]]).validate(json.loads(call["arguments"]))


@pytest.mark.parametrize("seed", range(6))
def test_required_calls_are_valid_and_streams_agree_with_answers(server, seed):
    fields = {"tools": TOOLS, "tool_choice": "required", "seed": seed}
    (choice,) = chat(server, **fields).json()["choices"]
    text, calls, reason = streamed(server, **fields)
    assert text == "" and choice["message"]["content"] is None
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert functions == [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    assert reason == choice["finish_reason"]
    check_calls(calls if reason == "tool_calls" else calls[:-1])
    assert calls and len({call["id"] for call in calls}) == len(calls)


def test_a_named_function_and_allowed_functions_are_the_only_ones(server):
    named = {"type": "function", "function": {"name": "place"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice in (named, allowed):
        for seed in range(3):
            _, calls, reason = streamed(server, tools=TOOLS, tool_choice=choice, seed=seed, parallel_tool_calls=False)
            assert [call["name"] for call in calls] == ["place"] and reason in ("tool_calls", "length")


def test_without_parallel_calls_there_is_one(server):
    counts = [
        len(streamed(server, tools=TOOLS[:1], tool_choice="required", seed=seed, max_tokens=200, **fields)[1])
        for seed in range(8)
        for fields in ({"parallel_tool_calls": False},)
    ]
    assert counts == [1] * 8


def test_text_is_possible_with_auto_and_none(server):
    plain = chat(server, temperature=0, max_tokens=10).json()["choices"][0]
    for choice in ("auto", "none"):
        (answer,) = chat(server, tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=10).json()["choices"]
        assert answer["message"]["content"] and "tool_calls" not in answer["message"]
        assert answer["finish_reason"] == plain["finish_reason"] == "length"


def test_log_probabilities_of_calls_are_returned(server):
    fields = {"tools": TOOLS, "tool_choice": "required", "logprobs": True, "top_logprobs": 2}
    document = chat(server, **fields).json()
    entries = document["choices"][0]["logprobs"]["content"]
    assert len(entries) == document["usage"]["completion_tokens"]
    assert "weather" in "".join(entry["token"] for entry in entries) or "place" in str(entries)


def test_a_stop_string_inside_a_call_is_reported(server):
    (choice,) = chat(server, tools=TOOLS[:1], tool_choice="required", stop=["city"]).json()["choices"]
    assert choice["finish_reason"] == "content_filter"


def test_a_conversation_continues_after_results(server):
    messages = [
        {"role": "user", "content": "The weather?"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rio"}'}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]  # fmt: skip
    for fields in ({"tools": TOOLS}, {}):
        response = chat(server, messages=messages, max_tokens=5, **fields)
        assert response.status_code == 200, response.text
    for arguments in ('{"a": 1e999}', '{"a": -1e999, "\\udc00": "\\ud800"}', '{"a": 1' + "0" * 5000 + "}"):
        messages[1]["tool_calls"][0]["function"]["arguments"] = arguments  # a model can write this
        for fields in ({"tools": TOOLS}, {}):
            response = chat(server, messages=messages, max_tokens=5, **fields)
            assert response.status_code == 200, response.text
    for arguments in ("{", "[]", '"a"', '{"a": 1, "a": 2}', '{"a": NaN}', 5):
        messages[1]["tool_calls"][0]["function"]["arguments"] = arguments
        response = chat(server, messages=messages)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize("seed", range(4))
def test_tools_and_a_response_format_together(server, seed):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    text, calls, reason = streamed(server, tools=TOOLS, response_format=form, seed=seed)
    if reason == "stop":
        jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(text))
        assert not calls
    else:
        assert reason in ("tool_calls", "length") and calls and not text


def test_unsupported_keywords_of_tools_are_errors_if_strict_and_else_listed(server):
    parameters = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"},
                                                         "uniqueItems": True, "maxItems": 1}}}  # fmt: skip
    for strict in (False, True):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": strict}}
        response = chat(server, tools=[TOOLS[0], tool], tool_choice={"type": "function", "function": {"name": "f"}})
        if strict:
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, "tools")
            assert "uniqueItems" in error["message"] and "tools[1]" in error["message"]
        else:
            assert response.headers["X-Puna-Ignored"] == "tools[1].function.parameters.uniqueItems"
            assert set(json.loads(response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]))


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"response_format": {"type": "json_object"}, "max_tokens": 400},
         lambda text: isinstance(json.loads(text), dict)),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
         lambda text: jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))),
        ({"structured_outputs": {"json": SCHEMA}},
         lambda text: jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))),
        ({"structured_outputs": {"regex": "[0-9]{3}-[a-c]"}}, lambda text: len(text) == 5 and text[3] == "-"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
        ({"structured_outputs": {"grammar": 'start: "(" start ")" | "x"'}}, lambda text: text.strip("()") == "x"),
    ],
)  # fmt: skip
def test_answers_follow_their_format(server, fields, check):
    for seed in range(3):
        choice = chat(server, seed=seed, **fields).json()["choices"][0]
        assert choice["finish_reason"] in ("stop", "length", "content_filter")
        if choice["finish_reason"] == "stop":
            assert check(choice["message"]["content"])
            assert streamed(server, seed=seed, **fields)[0] == choice["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
         "response_format", "'not'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema":
          {"properties": {"b": {"type": "string", "format": "iri"}}}}}}, "response_format", "'format'"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "response_format.json_schema", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs", "look"),
        ({"structured_outputs": {"grammar": "start: missing"}}, "structured_outputs", "missing"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "several"),
        ({"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema":
          {"not": {}}}}}, "response_format", "'not'"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex", "65536"),
        ({"structured_outputs": {"json": {"enum": ["a" * 300_000]}}}, "structured_outputs", "the limit is"),
        ({"guided_json": SCHEMA}, "guided_json", "structured_outputs"),
        ({"tools": []}, "tools", "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g'"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools", "weather"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0]", "custom"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_an_error_before_generation(server, fields, param, part):
    response = chat(server, **fields)
    error = response.json()["error"]
    assert response.status_code == 400 and part in error["message"], error
    assert error["param"] == param


SPECIAL_TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.last %}[tools]
{{ tools | tojson }}{% endif %}[INST] {{ m.content }}[/INST]{% elif m.tool_calls is defined %}[TOOL_CALLS] [
{%- for c in m.tool_calls %}{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}{{ ', ' if not loop.last else ']' }}
{%- endfor %}{{ eos_token }}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""


@pytest.mark.parametrize("name", ["[TOOL_CALLS]", "<|call|>"])
def test_a_special_token_marks_calls(tmp_path, name):
    from starlette.testclient import TestClient

    from puna import AsyncLLM
    from puna.server.app import create_app
    from puna.server.service import Service
    from puna.server.settings import ServerSettings

    path = tool_checkpoint(tmp_path)
    (path / "tokenizer.model").unlink()
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (path / file).write_text((path / file).read_text().replace("<unk>", name))
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["chat_template"] = SPECIAL_TEMPLATE.replace("[TOOL_CALLS]", name)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    model, settings = AsyncLLM(path, "native"), ServerSettings(name="golden")
    assert name in model.tokenizer.skipped_tokens().values()
    with TestClient(create_app(Service(model, settings), settings), "http://127.0.0.1:8000") as client:
        for seed in range(3):
            fields = {"tools": TOOLS, "tool_choice": "required", "seed": seed, "stop": ["never\n"]}
            text, calls, reason = streamed(client, **fields)
            assert text == "" and calls and reason in ("tool_calls", "length")
            check_calls(calls if reason == "tool_calls" else calls[:-1])
        plain = {"temperature": 0, "max_tokens": 12, "tools": TOOLS}
        texts = [
            chat(client, tool_choice=choice, **plain).json()["choices"][0]["message"]["content"]
            for choice in ("none", "auto")
        ]
        assert texts[0] == texts[1] != ""
    model.close()
