"""POST /v1/chat/completions: writes the updates of a generation as one response or as chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.server.events import EventStream
from puna.server.generation import Generation, Running
from puna.server.protocol.chat.fields import CHAT
from puna.server.protocol.chat.request import read_generation
from puna.server.protocol.choices import (
    DONE,
    Choice,
    ChunkHead,
    StreamUsage,
    Timings,
    call_usage,
    collect,
    finish_reason,
    head_of,
    prompt_logprobs,
    start,
)
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.extras import served_tier
from puna.server.protocol.logprobs import entries_of
from puna.server.protocol.schemas import CHAT_COMPLETION
from puna.server.service import Service
from puna.server.updates import (
    Finished,
    PrefillProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
    Update,
)


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    add_endpoint(
        routes, service, "/v1/chat/completions", CHAT, _answer, summary="Answer a conversation",
        response=CHAT_COMPLETION, streams=True,
    )  # fmt: skip
    return routes


async def _answer(call: Call) -> Response:
    values, timings = call.values, Timings()
    generation = read_generation(call)
    running = await start(call, generation)
    head = head_of(call, generation, "chatcmpl", "chat.completion.chunk" if values["stream"] else "chat.completion")
    if values["service_tier"] is not None:
        head["service_tier"] = served_tier(values)
    echoed = _continued_text(generation) if values["echo"] else ""
    if values["stream"]:
        chunks = _Chunks(call, running, ChunkHead(head), echoed, timings)
        return EventStream(chunks.encoded(), call.service.settings, cancel=running.cancel, headers=call.headers)
    choices = await collect(running, generation.sequences)
    document = {**head, "choices": [_choice(call, index, choice, echoed) for index, choice in enumerate(choices)]}
    document["usage"] = call_usage(call, running)
    if values["metadata"] is not None:
        document["metadata"] = values["metadata"]
    document |= _prompt_fields(call, running)
    if values["timings_per_token"]:
        document["timings"] = timings.document(running.usage)
    return call.json(document)


def _continued_text(generation: Generation) -> str:
    """Returns the text of the last message if the answer continues it, otherwise ""."""
    last: Any = generation.prompt[-1]
    return str(last["content"]) if generation.continue_final_message else ""


def _choice(call: Call, index: int, choice: Choice, echoed: str) -> dict[str, Any]:
    """Returns an answer in OpenAI's form."""
    text = echoed + choice.text
    message: dict[str, Any] = {
        "role": "assistant", "content": None if choice.calls and not text else text, "refusal": None, "annotations": [],
    }  # fmt: skip
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = choice.calls
    document = {
        "index": index, "message": message, "logprobs": _logprobs(call, choice),
        "finish_reason": finish_reason(choice.reason),
    }  # fmt: skip
    if call.values["return_token_ids"]:
        document["token_ids"] = choice.ids
    return document


def _logprobs(call: Call, source: Choice | TextDelta) -> dict[str, Any] | None:
    if not call.values["logprobs"]:
        return None
    return {"content": entries_of(source.tokens, call.service.llm.tokenizer), "refusal": None}


def _prompt_fields(call: Call, running: Running) -> dict[str, Any]:
    """Returns the requested fields that describe the prompt."""
    fields: dict[str, Any] = {}
    if call.values["prompt_logprobs"] is not None:
        fields["prompt_logprobs"] = prompt_logprobs(running.prompt_logprobs(), call.service)
    if call.values["return_token_ids"]:
        fields["prompt_token_ids"] = running.prompts[0]
    return fields


@dataclass
class _Chunks:
    """The chunks of a stream."""

    call: Call
    running: Running
    head: ChunkHead
    echoed: str
    timings: Timings
    started: set[int] = field(default_factory=set)
    is_first: bool = True

    async def encoded(self) -> AsyncIterator[bytes]:
        """Yields the chunks as events."""
        usage = StreamUsage(self.call, self.running)
        async for chunks in self.running.encoded(lambda update: self._chunk(update, usage)):
            yield chunks
        if usage.ends_stream:
            yield self._encode([], **usage.fields(is_last=True))
        yield DONE

    def _chunk(self, update: Update, usage: StreamUsage) -> bytes:
        if isinstance(update, PrefillProgress):
            return self._encode([], **usage.fields(), prompt_progress=self._progress(update))
        if isinstance(update, TextDelta) and update.choice in self.started and self._has_only_text(usage):
            return self._text(update, usage)
        return self._encode([self._choice(update)], **usage.fields()) if self._is_visible(update) else b""

    def _has_only_text(self, usage: StreamUsage) -> bool:
        """Returns whether the later chunks with text differ only by their text."""
        values = self.call.values
        others = values["logprobs"] or values["return_token_ids"] or values["timings_per_token"]
        return not (others or usage.is_in_every_chunk)

    def _text(self, update: TextDelta, usage: StreamUsage) -> bytes:
        def rest(text: str) -> dict[str, Any]:
            return {"choices": [self._choice(replace(update, text=text))], **usage.fields()}

        return self.head.text_event((type(update), update.choice), update.text, rest) if update.text else b""

    def _is_visible(self, update: Update) -> bool:
        """Returns whether an update needs a chunk. Tokens of calls, which have no text, need one only if requested."""
        values = self.call.values
        return not isinstance(update, TextDelta) or bool(
            update.text or values["logprobs"] or values["return_token_ids"]
        )

    def _choice(self, update: Update) -> dict[str, Any]:
        assert not isinstance(update, PrefillProgress)
        delta = self._delta(update)
        if update.choice not in self.started:
            self.started.add(update.choice)
            text = {"content": self.echoed + delta.get("content", "")} if "tool_calls" not in delta else {}
            delta = {"role": "assistant", "content": None, **delta, **text}
        item: dict[str, Any] = {"index": update.choice, "delta": delta, "logprobs": None, "finish_reason": None}
        if isinstance(update, TextDelta):
            item["logprobs"] = _logprobs(self.call, update)
            if self.call.values["return_token_ids"]:
                item["token_ids"] = update.ids
        elif isinstance(update, Finished):
            item["finish_reason"] = finish_reason(update.reason)
        return item

    @staticmethod
    def _delta(update: Update) -> dict[str, Any]:
        if isinstance(update, ReasoningDelta):
            return {"reasoning_content": update.text}
        if isinstance(update, TextDelta):
            return {"content": update.text}
        if isinstance(update, ToolCallStart):
            function = {"name": update.name, "arguments": ""}
            return {"tool_calls": [{"index": update.index, "id": update.id, "type": "function", "function": function}]}
        if isinstance(update, ToolCallArguments):
            return {"tool_calls": [{"index": update.index, "function": {"arguments": update.text}}]}
        return {}

    def _progress(self, update: PrefillProgress) -> dict[str, Any]:
        milliseconds = (time.monotonic() - self.timings.started) * 1e3
        return {
            "total": update.total, "cache": update.cached, "processed": update.done, "time_ms": round(milliseconds),
        }  # fmt: skip

    def _encode(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        document: dict[str, Any] = {"choices": choices, **extra}
        if self.is_first and choices:
            self.is_first = False
            document |= _prompt_fields(self.call, self.running)
        if self.call.values["timings_per_token"]:
            document["timings"] = self.timings.document(self.running.usage)
        return self.head.event(document)
