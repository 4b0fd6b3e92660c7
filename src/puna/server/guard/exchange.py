"""`Exchange`: one request and its response, for the log and the metrics. Stored in the state of the ASGI scope."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from puna.server.errors import ApiError
from puna.server.guard.callers import Caller

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_TRACE_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
"""W3C's traceparent: version, trace id, parent id, flags. Later versions may append fields."""


@dataclass
class Exchange:
    """One request and its response.

    Attributes:
        request_id: the client's `x-request-id` if it is valid, otherwise a new one.
        trace_id: the trace of the client's `traceparent`; None if there is no valid one.
        started: the time of arrival, from `time.perf_counter`.
        caller: who sent the request; anonymous until the key has been checked.
        status: the status of the response; 0 before there is one.
        sent: bytes of the body that were sent.
        complete: whether the complete response was sent.
        facts: fields that the endpoint adds to the log, such as the model and the numbers of tokens; never any text.
    """

    request_id: str
    trace_id: str | None = None
    started: float = field(default_factory=time.perf_counter)
    caller: Caller = field(default_factory=Caller)
    status: int = 0
    sent: int = 0
    complete: bool = False
    facts: dict[str, int | float | str] = field(default_factory=dict)


_current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def current_exchange() -> Exchange:
    """Returns the exchange of the request that the current task answers; a new one outside of a request."""
    return _current.get() or Exchange("")


def open_exchange(scope: Scope) -> Exchange:
    """Adds an `Exchange` to the scope of a request and returns it."""
    identifiers = list(header_values(scope, b"x-request-id"))
    valid = len(identifiers) == 1 and _REQUEST_ID.fullmatch(identifiers[0])
    trace = [_TRACE_PARENT.fullmatch(value) for value in header_values(scope, b"traceparent")]
    exchange = Exchange(
        identifiers[0].decode("ascii") if valid else f"req_{secrets.token_hex(12)}",
        trace[0][1].decode("ascii") if len(trace) == 1 and trace[0] else None,
    )
    scope.setdefault("state", {}).update(exchange=exchange, request_id=exchange.request_id)
    _current.set(exchange)
    return exchange


def exchange_of(scope: Scope) -> Exchange:
    """Returns the `Exchange` of a request; a new one if the application runs without the outer middleware, in tests."""
    exchange = scope.get("state", {}).get("exchange")
    return exchange if isinstance(exchange, Exchange) else open_exchange(scope)


def header_values(scope: Scope, name: bytes) -> Iterator[bytes]:
    """Yields the values of a request's header; `name` is in lower case."""
    return (value for key, value in scope["headers"] if key == name)


def is_anthropic(scope: Scope) -> bool:
    """Returns whether the client of a request uses Anthropic's API: its SDK sends a header at every path."""
    return scope["path"].startswith("/v1/messages") or any(True for _ in header_values(scope, b"anthropic-version"))


def error_body(error: ApiError, scope: Scope) -> dict[str, Any]:
    """Returns the JSON of an error in the shape of the client's API."""
    return error.anthropic(exchange_of(scope).request_id) if is_anthropic(scope) else error.openai()
