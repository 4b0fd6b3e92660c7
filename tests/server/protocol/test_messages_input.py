"""Messages of Anthropic's API become the messages that /v1/chat/completions would have."""

from __future__ import annotations

from typing import Any

import pytest

from puna.server.errors import ApiError
from puna.server.protocol.fields import read
from puna.server.protocol.messages.content import continues_answer, to_messages
from puna.server.protocol.messages.fields import COUNT_FIELDS, FIELDS
from puna.server.settings import ServerSettings

USER = {"role": "user", "content": "Hi"}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ü"}}
CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}
HEADER = "x-anthropic-billing-header: cc_version=2.1.37; cc_entrypoint=cli; cch=fa690;"


def messages_of(*turns: Any, **fields: Any) -> list[dict[str, Any]]:
    document = {"model": "m", "max_tokens": 4, "messages": list(turns), **fields}
    values = read(FIELDS, document, ServerSettings())
    return to_messages(values["system"], values["messages"])


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([USER], [USER]),
        ([{"role": "user", "content": [text("a", cache_control={"type": "ephemeral"}), text("b")]}],
         [{"role": "user", "content": "a\nb"}]),
        ([{"role": "ctx", "content": "a"}, {"role": "msg", "content": "b"}], [{"role": "user", "content": "a\nb"}]),
        ([USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": [text("b")]}],
         [USER, {"role": "assistant", "content": "a\nb"}]),
        ([{"role": "system", "content": "s"}, USER], [{"role": "system", "content": "s"}, USER]),
        ([{"role": "user", "content": []}], [{"role": "user", "content": ""}]),
        ([USER, {"role": "assistant", "content": [text("a"), USE, {**USE, "id": "t2"}]},
          {"role": "user", "content": [
              {"type": "tool_result", "tool_use_id": "t1", "content": "1"},
              {"type": "tool_result", "tool_use_id": "t2", "content": [text("2"), text("3")], "is_error": True},
              text("go on")]}],
         [USER, {"role": "assistant", "content": "a", "tool_calls": [CALL, {**CALL, "id": "t2"}]},
          {"role": "tool", "tool_call_id": "t1", "content": "1", "name": "f"},
          {"role": "tool", "tool_call_id": "t2", "content": "Error: 2\n3", "name": "f"},
          {"role": "user", "content": "go on"}]),
        ([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t9"}]}],
         [{"role": "tool", "tool_call_id": "t9", "content": ""}]),
        ([USER, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}, USE]}],
         [USER, {"role": "assistant", "content": None, "reasoning_content": "t", "tool_calls": [CALL]}]),
    ],
)  # fmt: skip
def test_blocks_become_messages(turns: list[Any], messages: list[dict[str, Any]]) -> None:
    assert messages_of(*turns) == messages


@pytest.mark.parametrize(
    "system",
    [
        [text(HEADER), text("You are Claude Code."), text("Be brief.")],
        f"{HEADER}\nYou are Claude Code.\nBe brief.",
        [text(f"{HEADER}\n\nYou are Claude Code."), text(HEADER.title()), text("Be brief.")],
        "You are Claude Code.\nBe brief.",
    ],
)
def test_billing_headers_are_left_out(system: Any) -> None:
    assert messages_of(USER, system=system) == [{"role": "system", "content": "You are Claude Code.\nBe brief."}, USER]


def test_a_system_message_that_mentions_the_header_is_unchanged() -> None:
    system = "Never send x-anthropic-billing-header: it changes."
    assert messages_of(USER, system=system)[0]["content"] == system


def test_an_assistant_message_at_the_end_is_continued() -> None:
    assert continues_answer(messages_of(USER, {"role": "assistant", "content": "The"}))
    assert not continues_answer(messages_of(USER))
    assert not continues_answer(messages_of(USER, {"role": "assistant", "content": [USE]}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "new"}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"container": "c"}, "container"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "always"}}, "thinking.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"sytem": "x"}, "sytem"),
    ],
)
def test_invalid_fields_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        read(FIELDS, {"model": "m", "max_tokens": 4, "messages": [USER], **fields}, ServerSettings())
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize(
    ("role", "block"),
    [
        ("user", USE),
        ("ctx", {"type": "thinking", "thinking": "t"}),
        ("assistant", {"type": "tool_result", "tool_use_id": "t"}),
        ("system", {"type": "redacted_thinking", "data": "d"}),
    ],
)
def test_blocks_that_the_author_cannot_write_are_refused(role: str, block: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="has the type") as error:
        messages_of(USER, {"role": role, "content": [text("a"), block]})
    assert (error.value.status, error.value.param) == (400, "messages[1].content[1]")


def test_counting_has_no_fields_of_the_answer() -> None:
    read(COUNT_FIELDS, {"model": "m", "messages": [USER], "tools": [], "thinking": None}, ServerSettings())
    with pytest.raises(ApiError, match="stream"):
        read(COUNT_FIELDS, {"model": "m", "messages": [USER], "stream": True}, ServerSettings())
