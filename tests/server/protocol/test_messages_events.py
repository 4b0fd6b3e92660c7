"""Updates of a generation become the events of Anthropic's API, in order, valid for the SDK's types."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from puna.server.errors import ApiError, to_json
from puna.server.guard.exchange import is_anthropic
from puna.server.protocol.messages.events import Writer
from puna.server.updates import Finished, TextDelta, ToolCallArguments, ToolCallStart, Update, Usage
from tests.server.sdk_types import Package, parse

types = Package("anthropic.types")

USAGE = Usage(prompt=9, completion=3, cached=4)


def events_of(writer: Writer, *updates: Update) -> list[dict[str, Any]]:
    events = writer.begin(Usage(prompt=9, completion=0, cached=4))
    for update in updates:
        events += writer.feed(update)
    events += writer.finish(USAGE)
    for event in events:
        if event["type"] != "ping":
            parse(types.RawMessageStreamEvent, event)
    parse(types.Message, writer.message)
    return events


def test_text_has_every_event_in_order() -> None:
    writer = Writer("m", 8)
    events = events_of(writer, TextDelta(0, "a"), TextDelta(0, ""), TextDelta(0, "b"), Finished(0, "stop", 2))
    assert [event["type"] for event in events] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    usage = {"input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4}
    assert events[0]["message"]["usage"] == {**usage, "output_tokens": 0} and events[0]["message"]["content"] == []
    assert events[6] == {
        "type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {**usage, "output_tokens": 3},
    }  # fmt: skip
    assert writer.message["content"] == [{"type": "text", "text": "ab"}]


def test_calls_follow_text() -> None:
    writer = Writer("m", 8)
    events = events_of(
        writer, TextDelta(0, "a"), ToolCallStart(0, 0, "toolu_1", "f"), ToolCallArguments(0, 0, '{"x":'),
        ToolCallArguments(0, 0, "1}"), ToolCallStart(0, 1, "toolu_2", "g"), Finished(0, "tool_calls"),
    )  # fmt: skip
    assert [(event["type"], event["index"]) for event in events if "index" in event] == [
        ("content_block_start", 0), ("content_block_delta", 0), ("content_block_stop", 0),
        ("content_block_start", 1), ("content_block_delta", 1), ("content_block_delta", 1), ("content_block_stop", 1),
        ("content_block_start", 2), ("content_block_stop", 2),
    ]  # fmt: skip
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert starts[1] == {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    assert [block.get("input") for block in writer.message["content"]] == [None, {"x": 1}, {}]
    assert writer.message["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("end", "maximum", "reason", "sequence"),
    [
        (Finished(0, "stop", 2), 8, "end_turn", None),
        (Finished(0, "stop", "\n"), 8, "stop_sequence", "\n"),
        (Finished(0, "length"), 3, "max_tokens", None),
        (Finished(0, "length"), 8, "model_context_window_exceeded", None),
    ],
)
def test_stop_reasons(end: Finished, maximum: int, reason: str, sequence: str | None) -> None:
    writer = Writer("m", maximum)
    events_of(writer, TextDelta(0, "a"), end)
    assert (writer.message["stop_reason"], writer.message["stop_sequence"]) == (reason, sequence)


def test_a_call_without_complete_arguments_has_none() -> None:
    writer = Writer("m", 3)
    events_of(writer, ToolCallStart(0, 0, "t", "f"), ToolCallArguments(0, 0, '{"x":'), Finished(0, "length"))
    assert writer.message["content"][0]["input"] == {} and writer.message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("text", "value"), [("1e999", sys.float_info.max), ("-1E400", -sys.float_info.max), ('"\\ud800"', "\ud800")]
)
def test_arguments_that_utf8_or_json_cannot_express_are_sent(text: str, value: Any) -> None:
    writer = Writer("m", 3)
    events_of(
        writer, ToolCallStart(0, 0, "t", "f"), ToolCallArguments(0, 0, f'{{"x":{text}}}'), Finished(0, "tool_calls")
    )
    assert json.loads(to_json(writer.message))["content"][0]["input"] == {"x": value}


def test_errors_inside_a_stream_have_anthropics_shape() -> None:
    event = ApiError(503, "later").anthropic("req_1")
    assert event == {
        "type": "error", "error": {"type": "overloaded_error", "message": "later"}, "request_id": "req_1"
    }  # fmt: skip


def test_a_client_of_anthropic_is_known_by_its_path_or_header() -> None:
    for path, headers, expected in (
        ("/v1/models", [], False),
        ("/v1/messages", [], True),
        ("/v1/models", [(b"anthropic-version", b"2023-06-01")], True),
        ("/v1/models", [(b"anthropic-version", b"")], True),
    ):
        assert is_anthropic({"path": path, "headers": headers}) is expected


def test_an_answer_that_breaks_its_format_is_no_ordinary_end() -> None:
    writer = Writer("m", 8)
    events_of(writer, TextDelta(0, '{"a": 1, "a"'), Finished(0, "invalid"))
    assert writer.message["stop_reason"] == "refusal"
