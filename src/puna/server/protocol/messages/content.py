"""Translates messages of Anthropic's API to messages for a chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from puna.errors import show
from puna.server.errors import ApiError

Message = dict[str, Any]

_BLOCKS = {
    "system": ("text",),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "user": ("text", "tool_result"),
}
"""The types of blocks that a message may have, by its role."""

_BILLING = re.compile(r"^x-anthropic-billing-header:[^\n]*\n*", re.IGNORECASE | re.MULTILINE)
"""A line at the beginning of Claude Code's system messages. It differs in each request, and would prevent the prefix
cache from finding the tokens after it, so it is removed."""


def to_messages(system: Any, turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Returns the messages of a request, in the form of /v1/chat/completions.

    Consecutive messages of one role become one message, as in Anthropic's API.

    Args:
        system: the field `system`: a text, text blocks or None.
        turns: the values of the field `messages`.

    Raises:
        ApiError: 400, if a message has a block that its role does not allow.
    """
    text = _system(system)
    messages: list[Message] = [{"role": "system", "content": text}] if text else []
    names: dict[str, str] = {}
    for index, turn in enumerate(turns):
        content = turn["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        _check_blocks(f"messages[{index}]", turn["role"], blocks)
        if turn["role"] == "system":
            _append(messages, "system", [_system(content)])
        elif turn["role"] == "assistant":
            _add_answer(messages, blocks, names)
        else:
            _add_user(messages, blocks, names)
    return messages


def _check_blocks(name: str, role: str, blocks: Sequence[Mapping[str, Any]]) -> None:
    allowed = _BLOCKS.get(role, _BLOCKS["user"])
    for index, block in enumerate(blocks):
        if block["type"] not in allowed:
            path = f"{name}.content[{index}]"
            message = f"{path} has the type {show(block['type'])}; with the role {show(role)} it must be one of "
            raise ApiError(400, message + ", ".join(allowed), param=path, code="invalid_value")


def continues_answer(messages: Sequence[Message]) -> bool:
    """Returns whether the last message is the beginning of the answer."""
    last = messages[-1]
    return last["role"] == "assistant" and "tool_calls" not in last


def _system(content: Any) -> str:
    """Returns the text of a system message without lines about billing; blocks become separate lines."""
    texts = [content] if isinstance(content, str) else [block["text"] for block in content or ()]
    stripped = [_BILLING.sub("", text) for text in texts]
    return "\n".join(text for text, before in zip(stripped, texts, strict=True) if text or not before)


def _add_user(messages: list[Message], blocks: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    texts: list[str] = []
    empty = True
    for block in blocks:
        empty = False
        if block["type"] == "tool_result":
            _append(messages, "user", texts)
            texts = []
            messages.append(_result(block, names))
        elif block["type"] == "text":
            texts.append(block["text"])
    _append(messages, "user", [""] if empty else texts)


def _append(messages: list[Message], role: str, texts: Sequence[str]) -> None:
    """Adds texts to the last message if it has the same role, otherwise adds a message."""
    if not texts:
        return
    text = "\n".join(texts)
    if messages and messages[-1]["role"] == role and len(messages) > (role == "system"):
        messages[-1]["content"] += "\n" + text
    else:
        messages.append({"role": role, "content": text})


def _result(block: Mapping[str, Any], names: Mapping[str, str]) -> Message:
    content = block["content"] or ""
    if not isinstance(content, str):
        content = "\n".join(part["text"] if part["type"] == "text" else part["tool_name"] for part in content)
    if block["is_error"]:
        content = f"Error: {content}"
    message = {"role": "tool", "tool_call_id": block["tool_use_id"], "content": content}
    name = names.get(block["tool_use_id"])
    return message if name is None else {**message, "name": name}


def _add_answer(messages: list[Message], blocks: Iterable[Mapping[str, Any]], names: dict[str, str]) -> None:
    texts, reasoning, calls = [], [], []
    for block in blocks:
        if block["type"] == "text":
            texts.append(block["text"])
        elif block["type"] == "thinking":
            reasoning.append(block["thinking"])
        elif block["type"] == "tool_use":
            names[block["id"]] = block["name"]
            function = {"name": block["name"], "arguments": json.dumps(block["input"], ensure_ascii=False)}
            calls.append({"id": block["id"], "type": "function", "function": function})
    if messages and messages[-1]["role"] == "assistant":
        message = messages[-1]
        texts = [text for text in (message["content"], *texts) if text]
    else:
        message = {"role": "assistant"}
        messages.append(message)
    message["content"] = "\n".join(texts) if texts or not (calls or "tool_calls" in message) else None
    if reasoning:
        message["reasoning_content"] = "\n".join([*filter(None, [message.get("reasoning_content")]), *reasoning])
    if calls:
        message["tool_calls"] = [*message.get("tool_calls", ()), *calls]
