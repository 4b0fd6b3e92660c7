"""Updates of a generation become the events of the Responses API, in order, valid for the SDK's types."""

from __future__ import annotations

from typing import Any

from puna.engine import TokenLogprobs
from puna.server.errors import ApiError
from puna.server.protocol.fields import read
from puna.server.protocol.responses.events import Writer
from puna.server.protocol.responses.fields import FIELDS
from puna.server.protocol.responses.resource import response_object
from puna.server.settings import ServerSettings
from puna.server.updates import Finished, TextDelta, ToolCallArguments, ToolCallStart, Update, Usage
from tests.server.sdk_types import Package, parse

types = Package("openai.types.responses")

USAGE = Usage(prompt=5, completion=3, cached=2)
ENTRY = {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -0.5}]}


def writer_of(**fields: Any) -> Writer:
    values = read(FIELDS, {"model": "m", "input": "Hi", **fields}, ServerSettings())
    response = response_object(values, created=7, temperature=1.0, top_p=1.0)
    return Writer(response, lambda tokens: [ENTRY for _ in tokens])


def events_of(writer: Writer, *updates: Update) -> list[dict[str, Any]]:
    events = writer.begin()
    for update in updates:
        events += writer.feed(update)
    events += writer.finish(USAGE)
    check(events)
    return events


def check(events: list[dict[str, Any]]) -> None:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        event = {**event}
        if "response" in event:
            event["response"] = without_store(event["response"])
        parse(types.ResponseStreamEvent, event)


def without_store(response: dict[str, Any]) -> dict[str, Any]:
    """Returns a response without `store`, the only field of Open Responses that the SDK's type does not have."""
    assert response["store"] is False
    return {name: value for name, value in response.items() if name != "store"}


def test_text_has_every_event_in_order() -> None:
    writer = writer_of()
    events = events_of(writer, TextDelta(0, "a"), TextDelta(0, "b"), Finished(0, "stop", 2))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["output"] == [] and events[0]["response"]["status"] == "in_progress"
    assert events[2]["item"]["content"] == [] and events[2]["item"]["status"] == "in_progress"
    assert [event["delta"] for event in events[4:6]] == ["a", "b"] and events[6]["text"] == "ab"
    assert {event["item_id"] for event in events[3:8]} == {events[2]["item"]["id"]}
    response = parse(types.Response, without_store(writer.response))
    assert response.output_text == "ab" and response.status == "completed"
    assert response.usage.input_tokens_details.cached_tokens == 2 and response.usage.total_tokens == 8
    assert events[-1]["response"] == writer.response


def test_calls_follow_text() -> None:
    writer = writer_of()
    events = events_of(
        writer, TextDelta(0, "a"), ToolCallStart(0, 0, "call_1", "f"), ToolCallArguments(0, 0, '{"x":'),
        ToolCallArguments(0, 0, "1}"), ToolCallStart(0, 1, "call_2", "g"), ToolCallArguments(0, 1, "{}"),
        Finished(0, "tool_calls"),
    )  # fmt: skip
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert [event["type"].removeprefix("response.") for event in events[8:-1]] == [*call[:2], *call[1:], *call]
    assert [(item["type"], item["status"]) for item in writer.response["output"]] == [
        ("message", "completed"), ("function_call", "completed"), ("function_call", "completed")
    ]  # fmt: skip
    assert (
        writer.response["output"][1]["arguments"] == '{"x":1}' and writer.response["output"][1]["call_id"] == "call_1"
    )
    assert [event["output_index"] for event in events if event["type"].endswith("item.added")] == [0, 1, 2]


def test_an_answer_that_max_output_tokens_ends_is_incomplete() -> None:
    writer = writer_of(max_output_tokens=3)
    events = events_of(writer, TextDelta(0, "a"), Finished(0, "length"))
    assert events[-1]["type"] == "response.incomplete" and events[-2]["item"]["status"] == "incomplete"
    assert writer.response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert writer.response["completed_at"] is None


def test_an_empty_answer_has_an_empty_message() -> None:
    writer = writer_of()
    events_of(writer, Finished(0, "stop"))
    assert writer.response["output"][0]["content"][0]["text"] == ""


def test_an_error_ends_the_stream_with_a_failed_response() -> None:
    writer = writer_of()
    events = writer.begin() + writer.feed(TextDelta(0, "a")) + writer.fail(ApiError(500, "broken"))
    check(events)
    assert events[-1]["type"] == "response.failed"
    assert writer.response["error"] == {"code": "server_error", "message": "broken"}
    assert writer.response["output"][0]["status"] == "incomplete"


def test_an_invalid_answer_fails() -> None:
    writer = writer_of()
    assert events_of(writer, TextDelta(0, "a"), Finished(0, "invalid"))[-1]["type"] == "response.failed"


def test_log_probabilities_have_bytes_only_in_items() -> None:
    writer = writer_of(top_logprobs=1)
    events = events_of(writer, TextDelta(0, "a", (1,), (None,)), Finished(0, "stop"))  # type: ignore[arg-type]
    top = [{"token": "a", "logprob": -0.5}]
    assert events[4]["logprobs"] == [{"token": "a", "logprob": -0.5, "top_logprobs": top}] == events[5]["logprobs"]
    assert writer.response["output"][0]["content"][0]["logprobs"] == [ENTRY]


def test_every_field_of_the_request_is_echoed() -> None:
    fields = {
        "instructions": "x", "max_output_tokens": 9, "parallel_tool_calls": False, "user": "u",
        "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h", "metadata": {"a": "b"},
        "top_logprobs": 2, "tool_choice": {"type": "function", "name": "f"}, "truncation": "disabled",
        "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
        "reasoning": {"effort": "none", "summary": "auto"},
    }  # fmt: skip
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    tools = [
        {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": True},
        {"type": "web_search"},
    ]
    text = {"format": schema, "verbosity": "medium"}
    response = writer_of(**fields, tools=tools, text={"format": schema}, store=True, service_tier="auto").response
    assert {name: response[name] for name in fields} == fields
    assert response["tools"] == tools and response["text"] == text
    assert response["store"] is False and response["service_tier"] == "default"
    parse(types.Response, without_store(response))
    assert set(types.Response.model_fields) - set(response) == OPTIONAL


OPTIONAL = {"access_programs", "image", "input_transformations", "tool_usage"}
"""Fields of the SDK's type that describe features of OpenAI's models and tools."""


def test_a_stored_response_cannot_be_compared() -> None:
    response = writer_of(prompt_cache_options={"comparison_response_id": "resp_1"}).response
    assert response["prompt_cache_diagnostics"] == {"type": "comparison_response_not_found"}
    parse(types.Response, without_store(response))


def test_tokens_without_text_before_a_call_are_no_message() -> None:
    token = TokenLogprobs(5, -0.5, ((5, -0.5),))
    writer = writer_of(top_logprobs=1)
    events_of(writer, TextDelta(0, "", (5,), (token,)), ToolCallStart(0, 0, "c", "f"), Finished(0, "tool_calls"))
    assert [item["type"] for item in writer.response["output"]] == ["function_call"]
