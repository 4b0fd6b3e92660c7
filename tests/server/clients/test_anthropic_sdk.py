"""The package `anthropic`: its helpers for streams and tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.clients.weather import CITIES, MODEL, QUESTION, SCHEMA, get_weather
from tests.server.sdk_types import Package

anthropic = Package("anthropic")

USER = {"role": "user", "content": QUESTION}
TOOL = {"name": "get_weather", "description": "The weather in a city", "input_schema": SCHEMA}
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def sdk(address: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=address, api_key="x", max_retries=0) as client:
        yield client


def test_a_streamed_tool_round_trip(sdk: Any) -> None:
    fields = {"model": MODEL, "tools": [TOOL], "extra_body": GREEDY}
    with sdk.messages.stream(messages=[USER], tool_choice={"type": "any"}, max_tokens=100, **fields) as stream:
        message = stream.get_final_message()
    assert message.stop_reason == "tool_use"
    results = [
        {"type": "tool_result", "tool_use_id": use.id, "content": get_weather(**use.input)} for use in message.content
    ]
    assert results
    turns = [USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    final = sdk.messages.create(messages=turns, tool_choice={"type": "none"}, max_tokens=8, **fields)
    assert final.content[0].type == "text" and final.usage.cache_read_input_tokens > 0


def test_the_tool_runner_calls_the_function(sdk: Any) -> None:
    called = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Returns the weather."""
        called.append(city)
        return "sunny"

    tool = {**weather.to_dict(), "input_schema": SCHEMA}
    weather.to_dict = lambda: tool
    runner = sdk.beta.messages.tool_runner(
        model=MODEL, max_tokens=200, tools=[weather], messages=[USER], max_iterations=2,
        tool_choice={"type": "tool", "name": "weather"}, extra_body=GREEDY,
    )  # fmt: skip
    messages = list(runner)
    assert called and set(called) <= set(CITIES) and len(messages) == 2


def test_tokens_are_counted_and_models_listed(sdk: Any) -> None:
    assert sdk.messages.count_tokens(model=MODEL, messages=[USER], tools=[TOOL]).input_tokens > 50
    assert [model.id for model in sdk.models.list()] == [MODEL]
