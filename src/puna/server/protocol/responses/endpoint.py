"""POST /v1/responses: starts a generation, and writes its updates as events or as one response."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from time import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from puna.config import GenerationDefaults
from puna.options import Options
from puna.server.events import EventStream, event
from puna.server.generation import Generation, Running
from puna.server.protocol.choices import start
from puna.server.protocol.endpoint import Call, add_endpoint
from puna.server.protocol.extras import priority_of
from puna.server.protocol.logprobs import entries_of
from puna.server.protocol.reasoning import read_effort
from puna.server.protocol.responses.events import Event, Writer
from puna.server.protocol.responses.fields import FIELDS
from puna.server.protocol.responses.items import to_messages
from puna.server.protocol.responses.resource import response_object
from puna.server.protocol.responses.tools import read_format, read_tools
from puna.server.protocol.sampling import read_options
from puna.server.protocol.schemas import RESPONSE
from puna.server.service import Service

_LOGPROBS = "message.output_text.logprobs"


def router(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter()
    add_endpoint(routes, service, "/v1/responses", FIELDS, _respond, summary="Answer items", response=RESPONSE,
                 streams=True)  # fmt: skip
    return routes


async def _respond(call: Call) -> Response:
    values, service = call.values, call.service
    adapter, tools = service.adapter(values["model"]), read_tools(values)
    options = _options(call)
    generation = Generation(
        to_messages(values["input"], values["instructions"]),
        options,
        adapter,
        tools=None if tools is None else [function.description_json for function in tools.functions],
        tool_set=tools,
        priority=priority_of(values),
        salt=values["cache_salt"] or "",
        template_kwargs=read_effort((values["reasoning"] or {}).get("effort"), "reasoning.effort", service),
    )
    running = await start(call, generation)
    response = response_object(values, created=int(time()), **_settings(options, service))
    writer = Writer(response, lambda tokens: entries_of(tokens, service.llm.tokenizer))
    if values["stream"]:
        return EventStream(
            _stream(running, writer), service.settings, cancel=running.cancel, headers=call.headers,
            render_error=lambda error, request_id: _encode(writer.fail(error)),
        )  # fmt: skip
    async for _ in _stream(running, writer):
        pass
    return call.json(writer.response)


def _options(call: Call) -> Options:
    """Returns the options of `LLM`."""
    values = call.values
    options: Options = {
        **read_options(values, call.service),
        **read_format((values["text"] or {}).get("format")),
    }
    if values["max_output_tokens"] is not None:
        options["max_tokens"] = values["max_output_tokens"]
    if values["top_logprobs"] or _LOGPROBS in (values["include"] or ()):
        options["logprobs"] = values["top_logprobs"] or 0
    return options


def _settings(options: Options, service: Service) -> dict[str, float]:
    """Returns the sampling settings that the response shows."""
    defaults = GenerationDefaults.of(service.llm.generation_config)
    settings: dict[str, Any] = {"temperature": defaults.temperature, "top_p": defaults.top_p, **options}
    return {name: settings[name] for name in ("temperature", "top_p")}


async def _stream(running: Running, writer: Writer) -> AsyncIterator[bytes]:
    yield _encode(writer.begin())
    async for events in running.encoded(lambda update: _encode(writer.feed(update))):
        yield events
    yield _encode(writer.finish(running.usage))


def _encode(events: Iterable[Event]) -> bytes:
    return b"".join(event(item["type"], item) for item in events)
