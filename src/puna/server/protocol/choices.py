"""What chat and completions share: the start of a generation, and parts of responses such as usage and timings."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.engine import TokenLogprobs
from puna.errors import ChatTemplateError, RuleError
from puna.server.errors import ApiError, to_json
from puna.server.generation import Generation, Running
from puna.server.protocol.endpoint import Call
from puna.server.protocol.extras import priority_of
from puna.server.protocol.fields import Values
from puna.server.protocol.logprobs import token_text
from puna.server.service import Service
from puna.server.updates import (
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
    Update,
    Usage,
)

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


@dataclass
class Choice:
    """A complete answer.

    Attributes:
        calls: the tool calls, in OpenAI's form.
    """

    text: str = ""
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: list[TokenLogprobs] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: FinishReason = "stop"
    stop: str | int | None = None

    def add(self, update: Update) -> None:
        """Adds an update of this answer."""
        if isinstance(update, TextDelta):
            if isinstance(update, ReasoningDelta):
                self.reasoning += update.text
            else:
                self.text += update.text
            self.ids += update.ids
            self.tokens += update.tokens
        elif isinstance(update, ToolCallStart):
            self.calls.append({"id": update.id, "type": "function", "function": {"name": update.name, "arguments": ""}})
        elif isinstance(update, ToolCallArguments):
            self.calls[update.index]["function"]["arguments"] += update.text
        elif isinstance(update, Finished):
            self.reason, self.stop = update.reason, update.stop


async def collect(running: Running, count: int) -> list[Choice]:
    """Returns the complete answers, when generation has ended."""
    choices = [Choice() for _ in range(count)]
    async for update in running:
        if isinstance(update, TextDelta | ToolCallStart | ToolCallArguments | Finished):
            choices[update.choice].add(update)
    return choices


def finish_reason(reason: FinishReason) -> str:
    """Returns OpenAI's name of the reason. It is "content_filter" for an invalid answer, whose text clients ignore."""
    return "content_filter" if reason == "invalid" else reason


def usage_document(usage: Usage) -> dict[str, Any]:
    """Returns the numbers of tokens in OpenAI's form."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.prompt - usage.cached},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.rejected,
        },
    }


def call_usage(call: Call, running: Running) -> dict[str, Any]:
    """Returns the numbers of tokens and, if requested, why the prefix cache did not contain the complete prompt."""
    document = usage_document(running.usage)
    if call.values["explain_prefix"]:
        miss, tokenizer = running.prefix_miss, call.service.llm.tokenizer
        document["prefix_miss"] = miss and {
            "reason": miss.reason, "position": miss.position,
            "token": None if miss.token is None else {"id": miss.token, "text": token_text(miss.token, tokenizer)},
            "cached_token": None if miss.other is None else {
                "id": miss.other, "text": token_text(miss.other, tokenizer),
            },
        }  # fmt: skip
    return document


def head_of(call: Call, generation: Generation, prefix: str, kind: str) -> dict[str, Any]:
    """Returns the fields with which the response and each chunk of a stream begin.

    Args:
        prefix: the beginning of the identifier.
        kind: the value of `object`.
    """
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
        "model": call.values["model"], "system_fingerprint": call.service.fingerprint(generation.adapter),
    }  # fmt: skip


_MARK = "\0"
"""`ChunkHead.text_event` encodes a chunk with this text, and then replaces it by other texts."""


class ChunkHead:
    """The fields with which each chunk of a stream begins, encoded once."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._bytes = b"data: " + to_json(fields).removesuffix(b"}") + b","
        self._frames: dict[Hashable, list[bytes]] = {}

    def event(self, rest: Mapping[str, Any]) -> bytes:
        """Returns the event for a chunk with the other fields `rest`."""
        return self._bytes + to_json(rest).removeprefix(b"{") + b"\n\n"

    def text_event(self, kind: Hashable, text: str, rest: Callable[[str], Mapping[str, Any]]) -> bytes:
        """Returns the event for a chunk that differs from others of its kind only by its text.

        Only the text is encoded. `rest` returns the other fields for a text, and is called once for each kind.
        """
        if kind not in self._frames:
            self._frames[kind] = self.event(rest(_MARK)).rsplit(to_json(_MARK), 1)
        before, after = self._frames[kind]
        return before + to_json(text) + after


@dataclass(frozen=True)
class StreamUsage:
    """The numbers of tokens in the chunks of a stream, as `stream_options` requests them."""

    call: Call
    running: Running

    @property
    def ends_stream(self) -> bool:
        """Whether a chunk without choices, which has the numbers, ends the stream."""
        return bool(self._options.get("include_usage"))

    @property
    def is_in_every_chunk(self) -> bool:
        """Whether each chunk has the numbers so far."""
        return bool(self._options.get("continuous_usage_stats"))

    def fields(self, *, is_last: bool = False) -> dict[str, Any]:
        """Returns the field `usage` of a chunk: the numbers, null, or no field."""
        if not (self.ends_stream or self.is_in_every_chunk):
            return {}
        return {"usage": call_usage(self.call, self.running) if is_last or self.is_in_every_chunk else None}

    @property
    def _options(self) -> Mapping[str, Any]:
        return self.call.values["stream_options"] or {}


@dataclass
class Timings:
    """The speeds of an answer, in the form of llama-server's `timings`.

    Attributes:
        started: when the request arrived.
        first: when `document` was first called, with the first part of the answer; None before.
    """

    started: float = field(default_factory=time.monotonic)
    first: float | None = None

    def document(self, usage: Usage) -> dict[str, Any]:
        """Returns the speeds until now."""
        now = time.monotonic()
        self.first = now if self.first is None else self.first
        tokens = usage.prompt - usage.cached
        prompt, answer = self.first - self.started, now - self.first
        return {
            "cache_n": usage.cached, "prompt_n": tokens, "prompt_ms": prompt * 1e3,
            "prompt_per_second": tokens / prompt if prompt > 0 else None,
            "predicted_n": usage.completion, "predicted_ms": answer * 1e3,
            "predicted_per_second": usage.completion / answer if answer > 0 else None,
        }  # fmt: skip


def shared_arguments(values: Values) -> dict[str, Any]:
    """Returns the arguments of `Generation` for fields of chat and completions."""
    return {
        "n": values["n"],
        "priority": priority_of(values),
        "salt": values["cache_salt"] or "",
        "include_stop": values["include_stop_str_in_output"],
        "skip_special_tokens": values["skip_special_tokens"],
        "explain_prefix": values["explain_prefix"],
    }


_FORMAT_FIELDS = (("response_format", None), ("text", "format"), ("output_config", "format"), ("output_format", None))
"""Fields of the endpoints whose `type` prescribes the form of the answer, and the field inside them, or None."""


async def start(call: Call, generation: Generation) -> Running:
    """Starts to generate. Errors of the chat template and of rules name the field of the request."""
    try:
        running = await call.service.start(generation)
    except ChatTemplateError as exc:
        param = "input" if "input" in call.values else "messages"
        if str(exc).startswith("template variable"):
            param = "chat_template_kwargs"
        elif call.values.get("chat_template") is not None:
            param = "chat_template"
        raise ApiError(400, str(exc), param=param, code="invalid_value") from exc
    except RuleError as exc:
        message = str(exc)
        param = "tools" if message.startswith("the function ") else _rule_field(call.values)
        if param != "tools" and message.startswith("json_schema"):
            message = param + message.removeprefix("json_schema")
        raise ApiError(400, message, param=param, code="invalid_value") from exc
    call.ignored.extend(running.ignored)
    return running


def _rule_field(values: Values) -> str:
    """Returns the field that prescribes the form of the answer."""
    for name, inner in _FORMAT_FIELDS:
        form = values.get(name) or {}
        if inner is not None:
            form = form.get(inner) or {}
        if form.get("type", "text") != "text":
            return name if inner is None else f"{name}.{inner}"
    return "structured_outputs" if values.get("structured_outputs") else "tools"


def prompt_logprobs(
    rows: Sequence[TokenLogprobs | None] | None, service: Service
) -> list[Mapping[str, Any] | None] | None:
    """Returns the log-probabilities of a prompt in vLLM's form: an object by token id per token; null for the first."""
    if rows is None:
        return None
    tokenizer = service.llm.tokenizer

    def entry(row: TokenLogprobs) -> dict[str, Any]:
        ranks = {token: rank for rank, (token, _) in enumerate(row.top, 1)}
        pairs = {row.token: row.logprob, **dict(row.top)}
        return {
            str(token): {
                "logprob": logprob, "rank": ranks.get(token), "decoded_token": token_text(token, tokenizer),
            }
            for token, logprob in pairs.items()
        }  # fmt: skip

    return [None if row is None else entry(row) for row in rows]
