"""Translates updates of a generation to events of the Responses API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from puna.engine import TokenLogprobs
from puna.server.errors import ApiError
from puna.server.protocol.responses.resource import (
    call_item,
    message_item,
    new_id,
    reasoning_item,
    text_part,
    usage_object,
)
from puna.server.updates import Finished, ReasoningDelta, TextDelta, ToolCallArguments, ToolCallStart, Update, Usage

Event = dict[str, Any]
Entry = Mapping[str, Any]


class Writer:
    """Turns updates into events, and keeps the response up to date.

    Args:
        response: the response before its answer begins; this object changes it.
        logprobs: returns the JSON of the log-probabilities of tokens.

    Attributes:
        response: the response, complete after `finish` or `fail`.
    """

    def __init__(
        self, response: dict[str, Any], logprobs: Callable[[Sequence[TokenLogprobs]], Sequence[Entry]]
    ) -> None:
        self.response = response
        self._logprobs = logprobs
        self._sequence = 0
        self._item: _Item | None = None
        self._reason = "stop"

    def begin(self) -> list[Event]:
        """Returns the events before the first token."""
        return [self._about("response.created"), self._about("response.in_progress")]

    def feed(self, update: Update) -> list[Event]:
        """Returns the events of an update."""
        events: list[Event] = []
        if isinstance(update, ReasoningDelta):
            if update.text:
                events += self._reasoning(update)
        elif isinstance(update, TextDelta):
            # The tokens that announce a call have no text: they do not begin a message.
            if update.text or (update.tokens and isinstance(self._item, _Text)):
                events += self._text(update)
        elif isinstance(update, ToolCallStart):
            events += self._close("completed") + self._open(_Call(update.id, update.name))
        elif isinstance(update, ToolCallArguments):
            if isinstance(self._item, _Call):
                events += self._numbered(self._item.delta(update.text))
        elif isinstance(update, Finished):
            self._reason = update.reason
        return events

    def finish(self, usage: Usage) -> list[Event]:
        """Returns the events after the last token."""
        events = [] if self._item is not None or self.response["output"] else self._open(_Text())
        incomplete = self._reason == "length"
        events += self._close("incomplete" if incomplete else "completed")
        self.response["usage"] = usage_object(usage)
        if self._reason == "invalid":
            return events + self._failed("the answer does not follow the requested format")
        self.response["status"] = "incomplete" if incomplete else "completed"
        if incomplete:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        return [*events, self._about(f"response.{self.response['status']}")]

    def fail(self, error: ApiError) -> list[Event]:
        """Returns the events for an error that occurs after the response has begun."""
        return self._close("incomplete") + self._failed(error.message)

    def _failed(self, message: str) -> list[Event]:
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": message}
        return [self._about("response.failed")]

    def _text(self, update: TextDelta) -> list[Event]:
        item, events = self._item, []
        if not isinstance(item, _Text):
            item = _Text()
            events = self._close("completed") + self._open(item)
        return [*events, *self._numbered(item.delta(update.text, self._logprobs(update.tokens)))]

    def _reasoning(self, update: ReasoningDelta) -> list[Event]:
        item, events = self._item, []
        if not isinstance(item, _Reasoning):
            item = _Reasoning()
            events = self._close("completed") + self._open(item)
        return [*events, *self._numbered(item.delta(update.text))]

    def _open(self, item: _Item) -> list[Event]:
        self._item = item
        item.output_index = len(self.response["output"])
        self.response["output"].append(item.object("in_progress"))
        return list(self._numbered(item.begin()))

    def _close(self, status: str) -> list[Event]:
        if self._item is None:
            return []
        item, self._item = self._item, None
        self.response["output"][item.output_index] = item.object(status)
        return list(self._numbered(item.end(status)))

    def _about(self, kind: str) -> Event:
        (event,) = self._numbered(
            iter([{"type": kind, "response": {**self.response, "output": [*self.response["output"]]}}])
        )
        return event

    def _numbered(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            yield {**event, "sequence_number": self._sequence}
            self._sequence += 1


class _Text:
    """An unfinished message with one text."""

    def __init__(self) -> None:
        self.output_index = 0
        self._id = new_id("msg")
        self._pieces: list[str] = []
        self._entries: list[Entry] = []

    def object(self, status: str) -> dict[str, Any]:
        return message_item(self._id, [] if status == "in_progress" else [self._part()], status)

    def begin(self) -> Iterator[Event]:
        item = self.object("in_progress")
        yield {"type": "response.output_item.added", "output_index": self.output_index, "item": item}
        yield self._event("response.content_part.added", part=text_part("", ()))

    def delta(self, text: str, entries: Sequence[Entry]) -> Iterator[Event]:
        self._pieces.append(text)
        self._entries += entries
        yield self._event("response.output_text.delta", delta=text, logprobs=_without_bytes(entries))

    def end(self, status: str) -> Iterator[Event]:
        entries = _without_bytes(self._entries)
        yield self._event("response.output_text.done", text="".join(self._pieces), logprobs=entries)
        yield self._event("response.content_part.done", part=self._part())
        yield {"type": "response.output_item.done", "output_index": self.output_index, "item": self.object(status)}

    def _part(self) -> dict[str, Any]:
        return text_part("".join(self._pieces), self._entries)

    def _event(self, kind: str, **fields: Any) -> Event:
        indices = {"item_id": self._id, "output_index": self.output_index, "content_index": 0}
        return {"type": kind, **indices, **fields}


class _Reasoning:
    """An unfinished item of reasoning."""

    def __init__(self) -> None:
        self.output_index = 0
        self._id = new_id("rs")
        self._pieces: list[str] = []

    def object(self, status: str) -> dict[str, Any]:
        return reasoning_item(self._id, [] if status == "in_progress" else [self._part()], status)

    def begin(self) -> Iterator[Event]:
        item = self.object("in_progress")
        yield {"type": "response.output_item.added", "output_index": self.output_index, "item": item}
        yield self._event("response.content_part.added", part={"type": "reasoning_text", "text": ""})

    def delta(self, text: str) -> Iterator[Event]:
        self._pieces.append(text)
        yield self._event("response.reasoning_text.delta", delta=text)

    def end(self, status: str) -> Iterator[Event]:
        yield self._event("response.reasoning_text.done", text="".join(self._pieces))
        yield self._event("response.content_part.done", part=self._part())
        yield {"type": "response.output_item.done", "output_index": self.output_index, "item": self.object(status)}

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": "".join(self._pieces)}

    def _event(self, kind: str, **fields: Any) -> Event:
        indices = {"item_id": self._id, "output_index": self.output_index, "content_index": 0}
        return {"type": kind, **indices, **fields}


class _Call:
    """An unfinished function call."""

    def __init__(self, call_id: str, name: str) -> None:
        self.output_index = 0
        self._id = new_id("fc")
        self._call_id, self._name = call_id, name
        self._pieces: list[str] = []

    def object(self, status: str) -> dict[str, Any]:
        return call_item(self._id, self._call_id, self._name, "".join(self._pieces), status)

    def begin(self) -> Iterator[Event]:
        item = self.object("in_progress")
        yield {"type": "response.output_item.added", "output_index": self.output_index, "item": item}

    def delta(self, text: str) -> Iterator[Event]:
        self._pieces.append(text)
        yield self._event("response.function_call_arguments.delta", delta=text)

    def end(self, status: str) -> Iterator[Event]:
        yield self._event("response.function_call_arguments.done", arguments="".join(self._pieces))
        yield {"type": "response.output_item.done", "output_index": self.output_index, "item": self.object(status)}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "output_index": self.output_index, **fields}


_Item = _Text | _Reasoning | _Call


def _without_bytes(entries: Sequence[Entry]) -> list[Entry]:
    """Returns log-probabilities in the form of events, which have no bytes."""
    return [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "top_logprobs": [{"token": top["token"], "logprob": top["logprob"]} for top in entry["top_logprobs"]],
        }
        for entry in entries
    ]
