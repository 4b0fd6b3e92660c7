"""POST /v1/chat/completions: the request as a `Generation`, and its updates as a response or as chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.server.errors import ApiError
from puna.server.events import EventStream, data
from puna.server.generation import Finished, Generation, Running, TextDelta, Usage
from puna.server.protocol.chat_fields import CHAT
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.fields import Values
from puna.server.protocol.sampling import read_options
from puna.server.service import Service

DONE = b"data: [DONE]\n\n"


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    add_endpoint(routes, service, "/v1/chat/completions", CHAT, _chat, summary="Answer a conversation", streams=True)
    return routes


async def _chat(call: Call) -> Response:
    values = call.values
    adapter = call.service.adapter(values["model"])
    options = read_options(values, call.service)
    limit = values["max_completion_tokens"] if values["max_completion_tokens"] is not None else values["max_tokens"]
    if limit is not None:
        options["max_tokens"] = limit
    messages = [_template_message(message) for message in values["messages"]]
    running = await call.service.start(Generation(messages, options, adapter, values["n"]))
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
        "model": values["model"], "system_fingerprint": call.service.fingerprint(adapter),
    }  # fmt: skip
    if values["stream"]:
        head["object"] = "chat.completion.chunk"
        events = _chunks(running, values, head)
        return EventStream(events, call.service.settings, cancel=running.cancel, headers=call.headers)
    completions = await running.complete()
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": None,
            "finish_reason": completion.finish_reason,
        }
        for index, completion in enumerate(completions)
    ]
    return call.json({**head, "choices": choices, "usage": usage_document(running.usage)})


def _template_message(message: Values) -> dict[str, Any]:
    """Returns a message for the chat template."""
    result = {name: value for name, value in message.items() if value is not None}
    if isinstance(message["content"], list):
        result["content"] = "\n".join(part["text"] for part in message["content"])
    if "content" not in result and not message["tool_calls"]:
        raise ApiError(400, "a message has no content", param="messages", code="invalid_value")
    result["role"] = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
    return result


async def _chunks(running: Running, values: Values, head: Mapping[str, Any]) -> AsyncIterator[bytes]:
    options = values["stream_options"] or {}
    empty = {"usage": None} if options.get("include_usage") else {}
    started = set()

    def chunk(choice: int, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        item = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return data({**head, "choices": [item], **empty})

    async for update in running:
        if isinstance(update, TextDelta) and update.text:
            role = {} if update.choice in started else {"role": "assistant"}
            started.add(update.choice)
            yield chunk(update.choice, {**role, "content": update.text})
        elif isinstance(update, Finished):
            yield chunk(update.choice, {}, update.reason)
    if options.get("include_usage"):
        yield data({**head, "choices": [], "usage": usage_document(running.usage)})
    yield DONE


def usage_document(usage: Usage) -> dict[str, Any]:
    """Returns the numbers of tokens in OpenAI's shape."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.rejected,
        },
    }
