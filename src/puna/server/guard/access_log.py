"""`OuterMiddleware`: adds headers to every response, and writes one line of log for each request.

The log contains no texts of requests or answers, no query strings and no keys.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.errors import printable
from puna.server.guard.exchange import Exchange, is_anthropic, open_exchange

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"cache-control", b"no-store"),
)
"""Headers that are added to every response unless it already has them. The files of the chat page have their own."""

_PATH_CHARACTERS = 200
_CLIENT_CLOSED = 499
"""Status in the log if the client disconnected before the response began, as in nginx."""


class OuterMiddleware:
    """The outermost ASGI middleware.

    Args:
        application: the next ASGI application.
        log: writes one line of log; None writes none.
        as_json: whether lines are JSON.
        headers: further headers of every response.
        extra: returns further headers that depend on the request.
        observe: called with each finished exchange and its path.
    """

    def __init__(
        self,
        application: ASGIApp,
        log: Callable[[str], None] | None = None,
        as_json: bool = False,
        headers: Sequence[tuple[bytes, bytes]] = (),
        extra: Callable[[Scope], Sequence[tuple[bytes, bytes]]] = lambda scope: (),
        observe: Callable[[Exchange, Scope], None] = lambda exchange, scope: None,
    ) -> None:
        self._application = application
        self._log = log
        self._json = as_json
        self._headers = tuple(headers)
        self._extra = extra
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return await self._application(scope, receive, send)
        exchange = open_exchange(scope)

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message = {**message, "headers": self._all_headers(scope, exchange, message.get("headers", ()))}
            elif message["type"] == "http.response.body":
                exchange.sent += len(message.get("body", b""))
            await send(message)
            exchange.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._application(scope, receive, counted_send)
        finally:
            self._observe(exchange, scope)
            if self._log is not None:
                self._log(log_line(exchange, scope, self._json))

    def _all_headers(
        self, scope: Scope, exchange: Exchange, own: Sequence[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]]:
        names = {bytes(name).lower() for name, _ in own}
        names_of_id = (b"x-request-id", b"request-id") if is_anthropic(scope) else (b"x-request-id",)
        added = [
            *((name, exchange.request_id.encode()) for name in names_of_id),
            *self._headers,
            *self._extra(scope),
            *SECURITY_HEADERS,
        ]
        return [*own, *(item for item in added if item[0] not in names)]


def log_line(exchange: Exchange, scope: Scope, as_json: bool) -> str:
    """Returns the line of log of a finished request. Characters that would begin a new line are escaped."""
    client = scope.get("client")
    fields: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": exchange.request_id,
        "trace_id": exchange.trace_id,
        "client": client[0] if client else None,
        "caller": exchange.caller.name,
        "method": scope["method"],
        "path": scope["path"][:_PATH_CHARACTERS],
        "status": exchange.status or _CLIENT_CLOSED,
        "bytes": exchange.sent,
        "seconds": round(time.perf_counter() - exchange.started, 4),
        **exchange.facts,
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    if as_json:
        return json.dumps(fields)
    first = ("time", "client", "method", "path", "status", "seconds")
    words = [_word(fields.pop(name)) for name in first if name in fields]
    return " ".join([*words, *(f"{name}={_word(value)}" for name, value in fields.items())])


def write_line(line: str) -> None:
    """Writes a line of log to the standard error output."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _word(value: object) -> str:
    """Returns a value as a word of a line: without spaces, line ends, or characters that a terminal obeys."""
    return printable(str(value)).replace("\n", "\\n").replace(" ", "%20")
