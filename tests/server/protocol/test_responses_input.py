"""Input items of the Responses API become the messages that /v1/chat/completions would have."""

from __future__ import annotations

from typing import Any

import pytest

from puna.server.errors import ApiError
from puna.server.protocol.fields import read
from puna.server.protocol.responses.fields import FIELDS
from puna.server.protocol.responses.items import to_messages
from puna.server.settings import ServerSettings

USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'}
CALL_ENTRY = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def messages_of(source: Any, **fields: Any) -> list[dict[str, Any]]:
    values = read(FIELDS, {"model": "m", "input": source, **fields}, ServerSettings())
    return to_messages(values["input"], values["instructions"])


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ("Hi", [USER]),
        ([USER], [USER]),
        ([{"type": "message", **USER}], [USER]),
        ("", [{"role": "user", "content": ""}]),
        ([], [{"role": "user", "content": ""}]),
        ([{"role": "developer", "content": "x"}], [{"role": "system", "content": "x"}]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
            [{"role": "user", "content": "a\nb"}],
        ),
        (
            [{"role": "assistant", "id": "msg_1", "status": "completed", "type": "message",
              "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                          {"type": "refusal", "refusal": "no"}]}],
            [{"role": "assistant", "content": "a\nno"}],
        ),
        (
            [USER, CALL, {"type": "function_call_output", "call_id": "c1", "output": "3"}],
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL_ENTRY]},
                {"role": "tool", "tool_call_id": "c1", "content": "3", "name": "f"},
            ],
        ),
        (  # text and several calls of one turn are one message
            [{"role": "assistant", "content": "a"}, CALL, {**CALL, "call_id": "c2"}],
            [{"role": "assistant", "content": "a", "tool_calls": [CALL_ENTRY, {**CALL_ENTRY, "id": "c2"}]}],
        ),
        (
            [{"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}]}, CALL],
            [{"role": "assistant", "content": None, "reasoning_content": "s", "tool_calls": [CALL_ENTRY]}],
        ),
        (
            [{"role": "assistant", "content": "a"},
             {"type": "reasoning", "summary": [], "encrypted_content": "x",
              "content": [{"type": "reasoning_text", "text": "t"}]},
             CALL],
            [
                {"role": "assistant", "content": "a"},
                {"role": "assistant", "content": None, "reasoning_content": "t", "tool_calls": [CALL_ENTRY]},
            ],
        ),
        (
            [{"type": "function_call_output", "call_id": "c9", "output": [{"type": "input_text", "text": "3"}]}],
            [{"role": "tool", "tool_call_id": "c9", "content": "3"}],
        ),
    ],
)  # fmt: skip
def test_items_become_messages(source: Any, messages: list[dict[str, Any]]) -> None:
    assert messages_of(source) == messages


def test_instructions_become_the_first_system_message() -> None:
    assert messages_of("Hi", instructions="Be brief") == [{"role": "system", "content": "Be brief"}, USER]


@pytest.mark.parametrize(
    ("source", "param"),
    [
        (7, "input"),
        ([7], "input[0]"),
        ([{"type": "item_reference", "id": "x"}], "input[0]"),
        ([{"id": "x"}], "input[0].role"),
        ([{"type": "web_search_call", "id": "x"}], "input[0].type"),
        ([{"type": 7}], "input[0].type"),
        ([{"role": "tool", "content": "x"}], "input[0].role"),
        ([{"role": "user"}], "input[0].content"),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}], "input[0].content[0]"),
        ([{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}], "input[0].content[0]"),
        ([{**CALL, "arguments": {}}], "input[0].arguments"),
        ([{"type": "function_call_output", "output": "3"}], "input[0].call_id"),
        ([{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}], "input[0].output[0]"),
    ],
)
def test_unsupported_items_are_named(source: Any, param: str) -> None:
    with pytest.raises(ApiError) as error:
        messages_of(source)
    assert (error.value.status, error.value.param) == (400, param)


def test_unknown_keys_and_tools_of_other_types_are_listed() -> None:
    document = {
        "model": "m",
        "input": [{**USER, "colour": "red"}],
        "tools": [
            {"type": "web_search"},
            {"type": "function", "name": "f", "x": 1},
            {"type": "namespace", "name": "n"},
        ],
    }
    values = read(FIELDS, document, ServerSettings())
    assert values.ignored == ("input[0].colour", "tools[0]=web_search", "tools[1].x", "tools[2]=namespace")
