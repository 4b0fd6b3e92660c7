"""The package `openai`: its helpers for streams, schemas and tools, over chat completions and responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from tests.server.clients.weather import CITIES, MODEL, QUESTION, SCHEMA, City, get_weather
from tests.server.sdk_types import Package, unknown_fields

openai = Package("openai")

FUNCTION = {"name": "get_weather", "description": "The weather in a city", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
SAMPLING = {"model": MODEL, "temperature": 0}


class Answer(BaseModel):
    """A schema of structured output."""

    model_config = ConfigDict(extra="forbid")
    city: City


@pytest.fixture(scope="module")
def sdk(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
        yield client


def test_a_tool_round_trip_of_chat_completions(sdk: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    fields = {**SAMPLING, "tools": [CHAT_TOOL], "max_tokens": 100}
    with sdk.chat.completions.stream(messages=messages, tool_choice="required", **fields) as stream:
        kinds = {event.type for event in stream}
        choice = stream.get_final_completion().choices[0]
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    messages.append(choice.message.model_dump(exclude_none=True))
    for call in choice.message.tool_calls:
        result = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    fields |= {"max_tokens": 8, "tool_choice": "none"}
    completion = sdk.chat.completions.create(messages=messages, **fields)
    assert completion.choices[0].message.content and completion.choices[0].message.tool_calls is None
    assert completion.usage.prompt_tokens_details.cached_tokens > 0


def test_a_tool_round_trip_of_responses(sdk: Any) -> None:
    source: list[Any] = [{"role": "user", "content": QUESTION}]
    fields = {**SAMPLING, "tools": [{"type": "function", **FUNCTION, "strict": True}]}
    with sdk.responses.stream(input=source, tool_choice="required", max_output_tokens=100, **fields) as stream:
        events = list(stream)
        response = stream.get_final_response()
    assert [list(unknown_fields(event)) for event in events if "arguments" in event.type] == [
        [] for event in events if "arguments" in event.type
    ]  # fmt: skip
    calls = [item for item in response.output if item.type == "function_call"]
    assert calls and response.status == "completed"
    for call in calls:
        result = get_weather(**json.loads(call.arguments))
        source += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id, "output": result}]
    source = [{key: value for key, value in item.items() if key != "parsed_arguments"} for item in source]
    response = sdk.responses.create(input=source, max_output_tokens=8, tool_choice="none", **fields)
    assert response.output_text


def test_structured_output_is_parsed(sdk: Any) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    completion = sdk.chat.completions.parse(messages=messages, response_format=Answer, max_tokens=100, **SAMPLING)
    response = sdk.responses.parse(input=QUESTION, text_format=Answer, max_output_tokens=100, **SAMPLING)
    assert completion.choices[0].message.parsed.city in CITIES and response.output_parsed.city in CITIES


def test_errors_are_those_of_the_sdk(sdk: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="golden"):
        sdk.responses.create(model="golde", input="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        sdk.responses.create(model=MODEL, input="x", temperature=9)


def test_the_list_of_models(sdk: Any) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL]
