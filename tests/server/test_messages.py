"""POST /v1/messages and /v1/messages/count_tokens over HTTP, read by the SDK of Anthropic."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.server.live import CONTEXT, live_server, tool_checkpoint
from tests.server.sdk_types import Package, unknown_fields

anthropic = Package("anthropic")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

MODEL = "golden"
USER = {"role": "user", "content": "What is the weather?"}
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "input_schema": {"type": "object", "properties": {"location": {"type": "string", "maxLength": 8}},
                     "required": ["location"], "additionalProperties": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from puna import AsyncLLM

    model = AsyncLLM(tool_checkpoint(tmp_path_factory.mktemp("checkpoint")), "native")
    yield model
    model.close()


@pytest.fixture(scope="module")
def sdk(llm: Any) -> Iterator[Any]:
    with live_server(llm) as address, anthropic.Anthropic(base_url=address, api_key="x", max_retries=0) as client:
        yield client


def create(sdk: Any, **fields: Any) -> Any:
    """Returns a message with valid fields only."""
    extra = fields.pop("extra_body", {})
    fields = {"model": MODEL, "max_tokens": 8, "messages": [USER], "extra_body": {"temperature": 0, **extra}} | fields
    message = sdk.messages.create(**fields)
    assert list(unknown_fields(message)) == []
    return message


def test_the_answer_equals_that_of_llm(sdk: Any, llm: Any) -> None:
    expected = asyncio.run(llm.chat([USER], max_tokens=8, temperature=0))
    message = create(sdk)
    assert [block.text for block in message.content] == [expected.text] and message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == len(expected.ids) and message.model == MODEL and message.role == "assistant"


def test_streams_have_every_event(sdk: Any) -> None:
    with sdk.messages.stream(model=MODEL, max_tokens=8, messages=[USER], extra_body={"temperature": 0}) as stream:
        events = list(stream)
        message = stream.get_final_message()
    assert [list(unknown_fields(event)) for event in events] == [[] for _ in events]
    kinds = [event.type for event in events if event.type != "text"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    expected = create(sdk)
    assert message.content[0].text == expected.content[0].text
    assert (message.stop_reason, message.usage.output_tokens) == (expected.stop_reason, expected.usage.output_tokens)
    start = events[0].message.usage
    assert start.input_tokens + start.cache_read_input_tokens == sdk.messages.count_tokens(
        model=MODEL, messages=[USER]
    ).input_tokens  # fmt: skip


def test_raw_streams_name_each_event(sdk: Any) -> None:
    body = {"model": MODEL, "max_tokens": 2, "messages": [USER], "stream": True}
    with sdk.messages.with_streaming_response.create(**body) as response:
        lines = [line for line in response.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    assert names[:3] == ["message_start", "ping", "content_block_start"] and names[-1] == "message_stop"
    assert all(f'"type":"{name}"' in line for name, line in zip(names, lines[1::2], strict=True))


def test_stop_sequences(sdk: Any) -> None:
    text = create(sdk).content[0].text
    message = create(sdk, stop_sequences=[text[4:6]])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", text[4:6])
    assert message.content[0].text == text[:4]


def test_a_system_message_and_a_prefilled_answer_are_part_of_the_prompt(sdk: Any, llm: Any) -> None:
    turns = [{"role": "system", "content": "Be brief"}, USER, {"role": "assistant", "content": "The"}]
    expected = asyncio.run(llm.chat(turns, continue_final_message=True, max_tokens=8, temperature=0))
    message = create(sdk, system=[{"type": "text", "text": "Be brief"}], messages=turns[1:])
    assert message.content[0].text == expected.text


def test_changing_billing_headers_keep_the_prefix(sdk: Any) -> None:
    def system(cch: str) -> list[dict[str, Any]]:
        header = f"x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch={cch};"
        return [{"type": "text", "text": header}, {"type": "text", "text": "You are a coding agent. " * 40}]

    first, second = create(sdk, system=system("fa690")), create(sdk, system=system("0b1c2"))
    assert second.content == first.content
    assert second.usage.cache_read_input_tokens >= 500 and second.usage.input_tokens <= 2
    assert first.usage.input_tokens + first.usage.cache_read_input_tokens == sdk.messages.count_tokens(
        model=MODEL, messages=[USER], system=system("1")
    ).input_tokens  # fmt: skip


def test_a_tool_round_trip(sdk: Any) -> None:
    fields = {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 200}
    message = create(sdk, **fields)
    (use,) = message.content
    assert (use.type, use.name, message.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert set(use.input) == {"location"}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    turns = [USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert create(sdk, tools=[WEATHER], messages=turns).usage.cache_read_input_tokens > 50


def test_arguments_that_a_model_wrote_are_accepted(sdk: Any) -> None:
    use = '{"type": "tool_use", "id": "t", "name": "get_weather", "input": {"location": "\\ud800", "n": [1e999, %s]}}'
    for fields in ("", f', "tools": [{json.dumps(WEATHER)}]'):
        body = (
            f'{{"model": "{MODEL}", "max_tokens": 4, "messages": [{json.dumps(USER)}, '
            f'{{"role": "assistant", "content": [{use % ("9" * 30)}]}}, {{"role": "user", "content": '
            f'[{{"type": "tool_result", "tool_use_id": "t", "content": "1"}}]}}]{fields}}}'
        )
        request = Request(
            f"{str(sdk.base_url).rstrip('/')}/v1/messages", body.encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["output_tokens"] == 4


def test_streamed_tool_calls(sdk: Any) -> None:
    fields = {"model": MODEL, "messages": [USER], "tools": [WEATHER], "max_tokens": 200}
    fields |= {"tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}}
    with sdk.messages.stream(**fields, extra_body={"temperature": 0}) as stream:
        deltas = [event for event in stream if event.type == "input_json"]
        (use,) = stream.get_final_message().content
    assert len(deltas) > 1 and use.input == create(sdk, **fields).content[0].input


def test_formats_are_followed(sdk: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    message = create(sdk, max_tokens=64, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert message.content[0].text.replace(" ", "") == '{"a":1}' and message.stop_reason == "end_turn"


def test_an_answer_that_fills_the_context_says_so(sdk: Any) -> None:
    turns = [{"role": "user", "content": "l" * 4000}]
    free = CONTEXT - sdk.messages.count_tokens(model=MODEL, messages=turns).input_tokens
    turns = [{"role": "user", "content": "l" * 4000 + " a" * (free - 4)}]
    count = sdk.messages.count_tokens(model=MODEL, messages=turns).input_tokens
    message = create(sdk, messages=turns, max_tokens=16000)
    assert message.stop_reason == "model_context_window_exceeded" and message.usage.output_tokens == CONTEXT - count


def test_tools_of_other_types_are_skipped_next_to_tools_of_the_client(sdk: Any) -> None:
    server, deferred = (
        {"type": "web_search_20250305", "name": "web_search"},
        {**WEATHER, "name": "b", "defer_loading": True},
    )
    tools = [server, WEATHER, {"type": "new_20300101", "name": "n"}, deferred]
    raw = sdk.messages.with_raw_response.create(model=MODEL, max_tokens=1, messages=[USER], tools=tools)
    assert raw.headers["x-puna-ignored"] == "tools[0]=web_search_20250305,tools[2]=new_20300101,tools[3]=b"
    counts = [sdk.messages.count_tokens(model=MODEL, messages=[USER], tools=item) for item in (tools, [WEATHER])]
    assert counts[0] == counts[1]
    with pytest.raises(anthropic.BadRequestError, match=r"web_search_20250305.*runs no tools"):
        create(sdk, tools=[server])


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"model": "golde"}, "NotFoundError", "golden"),
        ({"max_tokens": -1}, "BadRequestError", "max_tokens"),
        ({"output_config": {"effort": "high"}}, "BadRequestError", "output_config.effort"),
        ({"tool_choice": {"type": "any"}}, "BadRequestError", "tools has no function"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}},
            "BadRequestError",
            "tool_choice names .*g",
        ),
        ({"tools": [WEATHER, WEATHER]}, "BadRequestError", "two functions"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "BadRequestError",
            "output_config.format.*not",
        ),
        ({"extra_body": {"colour": 1}}, "BadRequestError", "colour"),
    ],
)
def test_errors_have_anthropics_shape(sdk: Any, fields: dict[str, Any], kind: str, text: str) -> None:
    with pytest.raises(getattr(anthropic, kind)) as error:
        create(sdk, **fields)
    assert re.search(text, error.value.message)
    check_error(error.value)


def check_error(error: Any) -> None:
    assert set(error.body) == {"type", "error", "request_id"} and error.body["type"] == "error"
    assert error.request_id and error.request_id == error.body["request_id"]


def test_errors_of_other_paths_have_anthropics_shape_too(sdk: Any) -> None:
    for call, text in ((lambda: sdk.models.retrieve("golde"), "golden"), (sdk.beta.files.list, "there is no path")):
        with pytest.raises(anthropic.NotFoundError, match=text) as error:
            call()
        assert error.value.type == "not_found_error"
        check_error(error.value)
    assert create(sdk)._request_id


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"metadata": {"user_id": "u"}, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"service_tier": "standard_only", "speed": "standard", "output_config": {"effort": None}},
        {"extra_body": {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}},
    ],
)
def test_fields_that_change_nothing_are_accepted(sdk: Any, fields: dict[str, Any]) -> None:
    assert create(sdk, **fields).content == create(sdk).content


def test_models_have_anthropics_shape(sdk: Any) -> None:
    page = sdk.models.list()
    assert [model.id for model in page.data] == [MODEL] and list(unknown_fields(page)) == []
    model = sdk.models.retrieve(MODEL)
    assert (model.type, model.lifecycle, model.max_input_tokens) == ("model", "active", CONTEXT)
    assert list(unknown_fields(model)) == [] and model.created_at.year > 2000
