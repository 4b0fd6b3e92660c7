"""POST /v1/messages and /v1/messages/count_tokens: starts generations, and writes their updates as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from fastapi import APIRouter
from starlette.responses import Response

from puna.options import Options
from puna.server.errors import ApiError
from puna.server.events import EventStream, event
from puna.server.generation import Generation, Running, encode
from puna.server.protocol.choices import start
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.messages.content import continues_answer, to_messages
from puna.server.protocol.messages.events import Event, Writer
from puna.server.protocol.messages.fields import COUNT_FIELDS, FIELDS
from puna.server.protocol.messages.tools import read_tools
from puna.server.protocol.reasoning import read_effort, switches
from puna.server.protocol.sampling import read_options
from puna.server.protocol.schemas import INT, MESSAGE, record
from puna.server.service import Service
from puna.server.updates import Update


def router(service: Service) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter()
    add_endpoint(routes, service, "/v1/messages", FIELDS, _answer, summary="Answer messages",
                 response=MESSAGE, streams=True)  # fmt: skip
    add_endpoint(
        routes,
        service,
        "/v1/messages/count_tokens",
        COUNT_FIELDS,
        _count,
        summary="Count tokens of messages",
        response=record({"input_tokens": INT}),
        admitted=False,
    )
    return routes


async def _answer(call: Call) -> Response:
    values, service = call.values, call.service
    options = read_options({**values, "stop": values["stop_sequences"]}, service)
    options["max_tokens"] = values["max_tokens"]
    running = await start(call, _generation(call, options))
    writer = Writer(values["model"], values["max_tokens"])
    if values["stream"]:
        return EventStream(_stream(running, writer), service.settings, cancel=running.cancel, headers=call.headers,
                           render_error=_render_error)  # fmt: skip
    async for _ in _stream(running, writer):
        pass
    return call.json(writer.message)


async def _count(call: Call) -> Response:
    ids = await asyncio.to_thread(encode, call.service.llm, _generation(call, Options()))
    return call.json({"input_tokens": len(ids)})


def _generation(call: Call, options: Options) -> Generation:
    """Returns the generation for a request; adds the format of the answer to `options`."""
    values, service = call.values, call.service
    messages, tools = to_messages(values["system"], values["messages"]), read_tools(values, call.ignored)
    output = values["output_config"] or {}
    variables = read_effort(output.get("effort"), "output_config.effort", service)
    if values["thinking"] and "enable_thinking" in switches(service):
        variables["enable_thinking"] = values["thinking"]["type"] != "disabled"
    if answer_format := output.get("format") or values["output_format"]:
        options["json_schema"] = answer_format["schema"]
    return Generation(
        messages,
        options,
        service.adapter(values["model"]),
        tools=None if tools is None else [function.description_json for function in tools.functions],
        tool_set=tools,
        continue_final_message=continues_answer(messages),
        template_kwargs=variables,
        priority=values.get("priority", 0),
        salt=values.get("cache_salt") or "",
    )


async def _stream(running: Running, writer: Writer) -> AsyncIterator[bytes]:
    """Yields the bytes of the events. The first event waits for the first token: it has the number of cached tokens."""
    has_begun = False

    def encode_update(update: Update) -> bytes:
        nonlocal has_begun
        begin = [] if has_begun else writer.begin(running.prompt_usage)
        has_begun = True
        return _encode([*begin, *writer.feed(update)])

    async for events in running.encoded(encode_update):
        yield events
    yield _encode(writer.finish(running.usage))


def _encode(events: Iterable[Event]) -> bytes:
    return b"".join(event(item["type"], item) for item in events)


def _render_error(error: ApiError, request_id: str | None) -> bytes:
    return _encode([error.anthropic(request_id)])
