"""Translates updates of a generation to events of Anthropic's API."""

from __future__ import annotations

import json
import secrets
from typing import Any

from puna.server.tools.values import nearest_number
from puna.server.updates import Finished, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart, Update, Usage

Event = dict[str, Any]


class Writer:
    """Turns updates into events, and keeps the message up to date.

    Args:
        model: the name of the model in the request.
        max_tokens: the requested maximum. An answer that was truncated before this length has filled the context.

    Attributes:
        message: the message, complete after `finish`.
    """

    def __init__(self, model: str, max_tokens: int) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": None,
        }
        self._max_tokens = max_tokens
        self._pieces: list[str] | None = None
        self._end: Finished | None = None

    def begin(self, usage: Usage) -> list[Event]:
        """Returns the events before the first token; `usage` has the numbers of tokens of the prompt."""
        message = {**self.message, "content": [], "usage": usage_object(usage)}
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def feed(self, update: Update) -> list[Event]:
        """Returns the events of an update."""
        if isinstance(update, ReasoningDelta):
            if not update.text:
                return []
            block = {"type": "thinking", "thinking": "", "signature": ""}
            events = [] if self._is_open("thinking") else self._open(block)
            return [*events, self._delta("thinking_delta", "thinking", update.text)]
        if isinstance(update, TextDelta) and update.text:
            events = [] if self._is_open("text") else self._open({"type": "text", "text": ""})
            return [*events, self._delta("text_delta", "text", update.text)]
        if isinstance(update, ToolCallStart):
            return self._open({"type": "tool_use", "id": update.id, "name": update.name, "input": {}})
        if isinstance(update, ToolCallArguments) and self._is_open("tool_use"):
            return [self._delta("input_json_delta", "partial_json", update.text)]
        if isinstance(update, Finished):
            self._end = update
        return []

    def finish(self, usage: Usage) -> list[Event]:
        """Returns the events after the last token."""
        events = self._close()
        self.message["usage"] = counts = usage_object(usage)
        self._set_reason(usage)
        delta = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        return [*events, {"type": "message_delta", "delta": delta, "usage": counts}, {"type": "message_stop"}]

    def _set_reason(self, usage: Usage) -> None:
        end = self._end or Finished(0, "stop")
        if end.reason == "invalid":  # the answer does not follow the requested format
            reason = "refusal"
        elif end.reason == "tool_calls" or any(block["type"] == "tool_use" for block in self.message["content"]):
            reason = "tool_use"
        else:
            reason = "end_turn"
        if end.reason == "length":
            reason = "max_tokens" if usage.completion >= self._max_tokens else "model_context_window_exceeded"
        elif end.reason == "stop" and isinstance(end.stop, str):
            reason, self.message["stop_sequence"] = "stop_sequence", end.stop
        self.message["stop_reason"] = reason

    def _is_open(self, kind: str) -> bool:
        return self._pieces is not None and self.message["content"][-1]["type"] == kind

    def _open(self, block: dict[str, Any]) -> list[Event]:
        events = self._close()
        self.message["content"].append(block)
        self._pieces = []
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": {**block}}]

    def _delta(self, kind: str, key: str, text: str) -> Event:
        assert self._pieces is not None
        self._pieces.append(text)
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, key: text}}

    def _close(self) -> list[Event]:
        if self._pieces is None:
            return []
        block, text, events = self.message["content"][-1], "".join(self._pieces), []
        if block["type"] == "tool_use":
            block["input"] = arguments_of(text)
        else:
            block[block["type"]] = text
        if block["type"] == "thinking":  # this server does not sign; SDKs expect the event
            delta = {"type": "signature_delta", "signature": ""}
            events.append({"type": "content_block_delta", "index": self._index, "delta": delta})
        self._pieces = None
        return [*events, {"type": "content_block_stop", "index": self._index}]

    @property
    def _index(self) -> int:
        return len(self.message["content"]) - 1


def arguments_of(text: str) -> dict[str, Any]:
    """Returns the arguments of a call; {} if they are not JSON, because max_tokens truncated the call."""
    try:
        arguments = json.loads(text or "{}", parse_int=nearest_number, parse_float=nearest_number)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Returns the numbers of tokens of a message; `input_tokens` does not include tokens found in the prefix cache."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }
