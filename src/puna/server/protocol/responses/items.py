"""Translates input items of the Responses API to messages for a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_ROLES = {"developer": "system"}


def to_messages(source: str | Sequence[Mapping[str, Any]], instructions: str | None) -> list[Message]:
    """Returns the messages of a request, in the form of /v1/chat/completions.

    An input without items becomes an empty user message: clients send one to find out whether a model answers. The
    text, the reasoning and the calls of one turn become one assistant message.

    Args:
        source: the value of the field `input`.
        instructions: the text of a system message that precedes the input.
    """
    items = [{"type": "message", "role": "user", "content": source}] if isinstance(source, str) else source
    turns = _Turns()
    for item in items:
        turns.add(item)
    messages = turns.finish() or [{"role": "user", "content": ""}]
    return messages if instructions is None else [{"role": "system", "content": instructions}, *messages]


class _Turns:
    """Collects messages from items."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._reasoning: list[str] = []
        self._names: dict[str, str] = {}

    def add(self, item: Mapping[str, Any]) -> None:
        kind = item["type"]
        if kind == "reasoning":
            self._reasoning += [part["text"] for part in item["content"] or item["summary"] or ()]
        elif kind == "function_call":
            self._call(item)
        elif kind == "function_call_output":
            name = item["name"] or self._names.get(item["call_id"])
            message = {"role": "tool", "tool_call_id": item["call_id"], "content": text_of(item["output"])}
            self._messages.append(message if name is None else {**message, "name": name})
        elif item["role"] == "assistant":
            self._assistant(text_of(item["content"]))
        else:
            role = _ROLES.get(item["role"], item["role"])
            self._messages.append({"role": role, "content": text_of(item["content"])})

    def finish(self) -> list[Message]:
        """Returns the messages."""
        if self._reasoning:  # the answer was interrupted before its text
            self._assistant("")
        return self._messages

    def _call(self, item: Mapping[str, Any]) -> None:
        function = {"name": item["name"], "arguments": item["arguments"]}
        self._names[item["call_id"]] = item["name"]
        last = self._messages[-1] if self._messages and not self._reasoning else None
        if last is None or last["role"] != "assistant":
            last = self._assistant(None)
        last.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})

    def _assistant(self, content: str | None) -> Message:
        message: Message = {"role": "assistant", "content": content}
        if self._reasoning:
            message["reasoning_content"], self._reasoning = "\n".join(self._reasoning), []
        self._messages.append(message)
        return message


def text_of(content: str | Iterable[Mapping[str, Any]]) -> str:
    """Returns the text of a message's content; its parts become separate lines, as in `LLM.chat`."""
    if isinstance(content, str):
        return content
    return "\n".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)
