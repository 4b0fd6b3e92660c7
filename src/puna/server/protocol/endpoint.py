"""`add_endpoint`: adds a POST endpoint whose requests are read with a table of fields."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.errors import show
from puna.server.errors import CLIENT_ERRORS, ApiError, api_error, to_json
from puna.server.events import cancelled_on_disconnect
from puna.server.guard.admission import Ticket
from puna.server.guard.exchange import error_body, exchange_of
from puna.server.protocol.extras import priority_of
from puna.server.protocol.fields import Table, Values, read
from puna.server.protocol.pages import Endpoint
from puna.server.protocol.schemas import ANTHROPIC_ERROR, ANY_ERROR
from puna.server.protocol.strict_json import parse
from puna.server.service import Service

log = logging.getLogger("puna.server")

_PROMPTS = ("prompt", "input", "text_2")
"""Fields that may be lists of texts, or lists of token ids. A list of other items is one conversation."""

_LONG_BODY = 65_536
"""Size in bytes above which a body is read in a thread: 4 MB of token ids take seconds, and would stop all streams."""

IGNORED = "X-Puna-Ignored"
"""The header that lists ignored fields."""

_HEADER_BYTES = 1000
"""Maximum length of this header: proxies limit the headers of a response, often to 4 KiB in total."""


@dataclass(frozen=True)
class Call:
    """One request to an endpoint.

    Attributes:
        service: the model.
        values: the fields.
        request: the HTTP request.
        ignored: paths of fields that were ignored; the endpoint may add some before it responds.
    """

    service: Service
    values: Values
    request: Request
    ignored: list[str]

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        if not self.ignored:
            return {}
        text = ",".join(dict.fromkeys(self.ignored)).encode("ascii", "backslashreplace").decode()
        text = "".join(character if character.isprintable() else "?" for character in text)
        return {IGNORED: text if len(text) <= _HEADER_BYTES else text[:_HEADER_BYTES] + "..."}

    def json(self, document: Any) -> Response:
        """Returns a response with a JSON document."""
        return json_response(document, headers=self.headers)

    async def long_json(self, make: Callable[[], Any]) -> Response:
        """Returns a response with the JSON document of a function, which a thread calls and converts to JSON."""
        return await asyncio.to_thread(lambda: self.json(make()))


Handler = Callable[[Call], Awaitable[Response]]

Result = TypeVar("Result")


def json_response(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a response with a JSON document."""
    return Response(to_json(document), status, dict(headers or {}), "application/json")


def error_response(error: ApiError, scope: Scope) -> Response:
    """Returns the response for an error, in the shape of the client's API."""
    return json_response(error_body(error, scope), error.status, error.headers)


def add_endpoint(
    router: APIRouter,
    service: Service,
    path: str,
    table: Table,
    handler: Handler,
    *,
    summary: str,
    response: Mapping[str, Any] | None = None,
    streams: bool = False,
    admitted: bool = True,
) -> None:
    """Adds `POST path` to a router.

    Args:
        table: the fields of the request.
        handler: answers a request; its errors become responses.
        summary: what the endpoint does, for the documents.
        response: JSON schema of the response.
        streams: whether the response may be a stream of server-sent events.
        admitted: whether requests wait in the queue for the model; False for endpoints that do not run the model.
    """

    async def endpoint(request: Request) -> Response:
        return respond(service, table, handler, request, admitted)

    endpoint.__dict__["described"] = Endpoint(path, table, summary)
    limits = service.settings.limits
    content: dict[str, Any] = {"application/json": {"schema": dict(response or {"type": "object"})}}
    if streams:
        content["text/event-stream"] = {}  # events have several schemas
    router.add_api_route(
        path, endpoint, methods=["POST"], summary=summary, response_class=Response, name=path,
        responses={200: {"description": "the answer", "content": content}, **error_responses(path)},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
            "schema": table.schema(limits)}}}},
    )  # fmt: skip


_STATUSES: dict[int | str, str] = {
    400: "a field is missing, invalid or not supported", 401: "the API key is missing or wrong",
    403: "the request came from a page of another site", 404: "there is no such model",
    405: "the method is not allowed", 408: "the request took too long", 413: "the body is too large",
    415: "the body is not application/json", 429: "too many requests are waiting", 500: "the server failed",
    503: "the model is loading, or the server is shutting down", "4XX": "the request is not valid",
}  # fmt: skip


def error_responses(path: str) -> dict[int | str, dict[str, Any]]:
    """Returns the descriptions of a path's errors for OpenAPI."""
    schema = ANTHROPIC_ERROR if path.startswith("/v1/messages") else ANY_ERROR
    content = {"application/json": {"schema": schema}}
    return {status: {"description": text, "content": content} for status, text in _STATUSES.items()}


class _Response(Response):
    """Reads a request and answers it. It is a response because `receive` shows when the client disconnects."""

    def __init__(self, service: Service, table: Table, handler: Handler, request: Request, admitted: bool) -> None:
        self.background = None
        self._service, self._table, self._handler, self._request = service, table, handler, request
        self._admitted = admitted
        self._ticket: Ticket | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, and frees the place of the request in the queue."""
        try:
            await self._respond(scope, receive, send)
        finally:
            if self._ticket is not None:
                self._service.admission.leave(self._ticket)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request = self._service, self._request

        async def answer() -> Response | None:
            service.check_ready()
            document, size = await read_document(request, service)
            values = await _run_by_size(size, read, self._table, document, service.settings)
            call = Call(service, values, request, list(values.ignored))
            if self._admitted and not await cancelled_on_disconnect(receive, self._enter(call)):
                return None
            return await cancelled_on_disconnect(receive, self._answer(call), service.settings.request_seconds)

        await send_result(answer(), scope, receive, send)

    async def _enter(self, call: Call) -> bool:
        """Waits in the queue; returns True."""
        exchange, admission = exchange_of(call.request.scope), call.service.admission
        self._ticket = await admission.enter(exchange.caller.name, **_queue_options(call.values))
        call.service.observer.admitted(exchange, self._ticket)
        return True

    async def _answer(self, call: Call) -> Response:
        try:
            return await self._handler(call)
        except CLIENT_ERRORS as exc:
            raise api_error(exc, fields=call.values) from exc


def _queue_options(values: Values) -> dict[str, Any]:
    """Returns the arguments of `Admission.enter` that depend on the fields of a request."""
    users = [values.get(name) for name in ("safety_identifier", "user", "prompt_cache_key")]
    users.append((values.get("metadata") or {}).get("user_id"))
    prompts: list[Any] = next((values[name] for name in _PROMPTS if isinstance(values.get(name), list)), [])
    count = len(prompts) if prompts and isinstance(prompts[0], str | list) else 1
    return {
        "user": next((user for user in users if isinstance(user, str)), None),
        "priority": priority_of(values),
        "size": count * max(values.get("n") or 1, values.get("best_of") or 1),
        "model": values.get("model") or "",
    }


def respond(service: Service, table: Table, handler: Handler, request: Request, admitted: bool = True) -> Response:
    """Returns the response of an endpoint to a request; see `add_endpoint`."""
    return _Response(service, table, handler, request, admitted)


async def send_result(work: Awaitable[Response | None], scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the response that `work` returns, or its error; nothing if the client has disconnected."""
    try:
        response = await work
    except ClientDisconnect:
        return
    except Exception as exc:
        request_id = scope.get("state", {}).get("request_id")
        error = api_error(exc, request_id)
        if error.status == 500:
            log.exception("request failed")
        response = error_response(error, scope)
    if response is not None:
        await response(scope, receive, send)


async def read_document(request: Request, service: Service) -> tuple[dict[str, Any], int]:
    """Returns the JSON object in the body of a request, and the number of bytes of the body.

    Raises:
        ApiError: 413 if the body is too large, 415 if its type is not JSON, 400 if it is not a JSON object.
    """
    limits = service.settings.limits
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is {show(kind)}; it must be application/json")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limits.body_bytes:
            raise ApiError(413, f"the body has more than {limits.body_bytes} bytes; send a shorter body")
    return await _run_by_size(len(body), parse, bytes(body), limits.depth), len(body)


async def _run_by_size(size: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function that reads a body of `size` bytes: in a thread if the body is long."""
    return await asyncio.to_thread(function, *arguments) if size > _LONG_BODY else function(*arguments)
