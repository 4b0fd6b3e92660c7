"""POST /v1/responses over HTTP, read by the SDK of OpenAI: the cases of Open Responses' compliance tests, and more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.live import live_server, tool_checkpoint
from tests.server.sdk_types import Package, unknown_fields

openai = Package("openai")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

MODEL = "golden"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {"type": "object", "properties": {"location": {"type": "string", "maxLength": 8}},
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
    with live_server(llm) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        yield client


def create(sdk: Any, **fields: Any) -> Any:
    """Returns a response with valid fields only."""
    fields = {"model": MODEL, "max_output_tokens": 8, "temperature": 0} | fields
    if not fields.get("stream"):
        response = sdk.responses.create(**fields)
        check(response)
        return response
    events = list(sdk.responses.create(**fields))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        if event.type in ("response.created", "response.completed", "response.incomplete", "response.in_progress"):
            check(event.response)
        else:
            assert list(unknown_fields(event)) == []
    return events


def check(response: Any) -> None:
    """`store` is the one field that the SDK's type does not have; it says that nothing was stored."""
    assert response.model_extra == {"store": False}
    assert list(unknown_fields(response)) == [".store"]


def text_of(role: str, text: str) -> dict[str, str]:
    return {"type": "message", "role": role, "content": text}


def test_basic_response(sdk: Any, llm: Any) -> None:
    messages = [{"role": "user", "content": "Say hello in exactly 3 words."}]
    expected = asyncio.run(llm.chat(messages, max_tokens=8, temperature=0))
    response = create(sdk, input=[text_of("user", messages[0]["content"])])
    assert response.output_text == expected.text
    assert response.usage.output_tokens == len(expected.ids)
    assert response.output[0].type == "message" and response.output[0].role == "assistant"


def test_a_complete_response(sdk: Any) -> None:
    response = create(sdk, input="Say hello.", extra_body={"stop": [" "]}, max_output_tokens=64)
    assert response.status == "completed" and response.incomplete_details is None
    assert response.completed_at >= response.created_at and response.output[0].status == "completed"


def test_streaming_response(sdk: Any) -> None:
    source = [text_of("user", "Count from 1 to 5.")]
    events = create(sdk, input=source, stream=True)
    response = create(sdk, input=source)
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta") == response.output_text
    )
    assert events[-1].response.output_text == response.output_text
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert [event.type for event in events[-4:]] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"
    ]  # fmt: skip


def test_system_prompt(sdk: Any) -> None:
    pirate, hello = "You are a pirate.", text_of("user", "Say hello.")
    response = create(sdk, input=[text_of("system", pirate), hello])
    assert create(sdk, input=[hello], instructions=pirate).output_text == response.output_text
    assert create(sdk, input=[text_of("developer", pirate), hello]).output_text == response.output_text
    assert create(sdk, input=[hello]).usage.input_tokens < response.usage.input_tokens


def test_tool_calling(sdk: Any) -> None:
    response = create(sdk, input="What is the weather?", tools=[WEATHER], tool_choice="required", max_output_tokens=200)
    (call,) = response.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert response.status == "completed" and response.tools[0].name == "get_weather"
    history = [
        text_of("user", "What is the weather?"),
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
    ]
    assert create(sdk, input=history, tools=[WEATHER]).usage.input_tokens > response.usage.input_tokens


def test_tool_calling_streaming(sdk: Any) -> None:
    fields = {"input": "What is the weather?", "tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 200}
    events = create(sdk, stream=True, **fields)
    (added,) = [event for event in events if event.type == "response.output_item.added"]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert added.item.type == "function_call" and added.item.arguments == "" and added.item.status == "in_progress"
    assert "".join(deltas) == done.arguments == create(sdk, **fields).output[0].arguments and len(deltas) > 1
    assert events[-1].type == "response.completed"


def test_image_input_is_refused(sdk: Any) -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    with pytest.raises(openai.BadRequestError) as error:
        create(sdk, input=[{"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, image]}])
    assert error.value.param == "input[0].content[1]" and error.value.code == "unsupported_parameter"


def test_multi_turn(sdk: Any) -> None:
    turns = [text_of("user", "I am Alice."), text_of("assistant", "Hello Alice!"), text_of("user", "Who am I?")]
    first = create(sdk, input=turns)
    again = [*turns, *(item.model_dump() for item in first.output), text_of("user", "Why?")]
    assert create(sdk, input=again).usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1


def test_log_probabilities_are_those_of_the_model(sdk: Any, llm: Any) -> None:
    expected = asyncio.run(llm.chat([{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0, logprobs=2))
    fields = {
        "input": "Hi",
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "top_logprobs": 2,
    }
    entries = create(sdk, **fields).output[0].content[0].logprobs
    assert [entry.logprob for entry in entries] == [token.logprob for token in expected.logprobs]
    assert b"".join(bytes(entry.bytes) for entry in entries).decode().strip() == expected.text.strip()
    tops = [[top.logprob for top in entry.top_logprobs] for entry in entries]
    assert tops == [[logprob for _, logprob in token.top] for token in expected.logprobs]
    streamed = [e for event in create(sdk, stream=True, **fields) if "text.delta" in event.type for e in event.logprobs]
    assert [entry.logprob for entry in streamed] == [entry.logprob for entry in entries]


def test_formats_are_followed(sdk: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    response = create(sdk, input="Hi", text=text, max_output_tokens=64)
    assert response.output_text in ('{"a":1}', '{"a":2}', '{"a": 1}', '{"a": 2}') and response.status == "completed"


def test_the_probe_of_coding_agents_is_answered(sdk: Any) -> None:
    for source in ("", []):
        response = create(sdk, input=source, max_output_tokens=1)
        assert response.status == "incomplete" and response.usage.output_tokens == 1


def test_tools_of_other_types_are_skipped(sdk: Any) -> None:
    tools = [{"type": "web_search"}, {"type": "image_generation"}]
    raw = sdk.responses.with_raw_response.create(model=MODEL, input="Hi", tools=tools, max_output_tokens=1)
    assert raw.headers["x-puna-ignored"] == "tools[0]=web_search,tools[1]=image_generation"
    assert [tool.type for tool in raw.parse().tools] == ["web_search", "image_generation"]
    with pytest.raises(openai.BadRequestError, match="requires a call"):
        create(sdk, input="Hi", tools=tools, tool_choice="required")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"stream_options": {"include_obfuscation": True}, "stream": True}, "stream_options.include_obfuscation"),
        ({"metadata": {str(index): "" for index in range(17)}}, "metadata"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{**WEATHER, "strict": True, "parameters": {"$ref": "x"}}]}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}}, "text.format"),
        ({"extra_body": {"colour": 1}}, "colour"),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused(sdk: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        create(sdk, input="Hi", **fields)
    assert error.value.param == param and error.value.type == "invalid_request_error"


def test_null_is_the_same_as_an_absent_field(sdk: Any) -> None:
    from puna.server.protocol.responses.fields import FIELDS

    nulls = {row.name: None for row in FIELDS.fields if not row.required}
    sdk.post("/responses", body={"model": MODEL, "input": "Hi", **nulls, "max_output_tokens": 1}, cast_to=object)


def test_a_prompt_that_exceeds_the_context_is_refused_with_both_counts(sdk: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens.*8192") as error:
        create(sdk, input="the llama " * 8192)
    assert error.value.code == "context_length_exceeded"
