"""Server-sent events: a stream of bytes with pings, which ends its generation when the client is gone or too slow."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.server.errors import ApiError, api_error, to_json
from puna.server.settings import ServerSettings

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

PING = b": ping\n\n"

log = logging.getLogger("puna.server")

Result = TypeVar("Result")


def data(document: Any) -> bytes:
    """Returns an event without a name."""
    return b"data: " + to_json(document) + b"\n\n"


def event(name: str, document: Any) -> bytes:
    """Returns an event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + to_json(document) + b"\n\n"


def openai_error(error: ApiError, path: str, request_id: str | None) -> bytes:
    """Returns the event for an error inside a stream."""
    return data(error.body(path, request_id))


class EventStream(Response):
    """A response of server-sent events.

    Args:
        events: yields the bytes of events. It is closed when the client disconnects.
        cancel: ends the generation; called whenever the stream ends.
        render_error: returns the event for an error inside the stream.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        settings: ServerSettings,
        *,
        cancel: Callable[[], None] = lambda: None,
        headers: Mapping[str, str] | None = None,
        render_error: Callable[[ApiError, str, str | None], bytes] = openai_error,
    ) -> None:
        self.background = None
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.body = b""
        self._events = events
        self._settings = settings
        self._cancel = cancel
        self._render_error = render_error
        self.init_headers({**_HEADERS, **(headers or {})})
        self.raw_headers = [item for item in self.raw_headers if item[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until they end, the client disconnects, or the client reads nothing for too long."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await cancelled_on_disconnect(receive, self._send_all(scope, send))
        finally:
            self._cancel()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": body, "more_body": more}
            await asyncio.wait_for(send(message), self._settings.slow_reader_seconds)

        try:
            deadline = time.monotonic() + self._settings.request_seconds
            async for body in with_pings(self._events, self._settings.ping_seconds, deadline):
                await write(body)
        except asyncio.TimeoutError:
            log.warning("a stream was ended because its client did not read it")
            return
        except Exception as exc:
            request_id = scope.get("state", {}).get("request_id")
            error = api_error(exc, request_id)
            if error.status >= 500:
                log.exception("an error ended a stream")
            await write(self._render_error(error, scope["path"], request_id))
        await write(b"", more=False)


async def with_pings(events: AsyncIterator[bytes], seconds: float, deadline: float = math.inf) -> AsyncIterator[bytes]:
    """Yields the events, and a comment whenever there has been no event for some seconds.

    Raises:
        ApiError: 408, if the events have not ended at `deadline`, in seconds of `time.monotonic`.
    """
    pending: asyncio.Future[bytes] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(events.__anext__())
            while not (await asyncio.wait({pending}, timeout=min(seconds, deadline - time.monotonic())))[0]:
                if time.monotonic() >= deadline:
                    raise timeout_error()
                yield PING
            if time.monotonic() >= deadline:
                raise timeout_error()
            try:
                body = pending.result()
            except StopAsyncIteration:
                return
            yield body
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending


def timeout_error() -> ApiError:
    """Returns the error for a request that takes too long."""
    message = "the answer took longer than this server allows; request fewer tokens, or start it with --request-seconds"
    return ApiError(408, message, code="request_timeout")


async def cancelled_on_disconnect(
    receive: Receive, work: Awaitable[Result], seconds: float | None = None
) -> Result | None:
    """Returns the result of `work`; cancels it, and returns None, when the client disconnects.

    Raises:
        ApiError: 408, if the work takes longer than `seconds`; it is cancelled.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if not watcher.done():
            raise timeout_error()
        return None
    finally:
        for item in (watcher, task):
            while not item.done():  # before Python 3.12, `wait_for` may ignore a cancellation
                item.cancel()
                await asyncio.wait({item}, timeout=1)
        if not task.cancelled():
            task.exception()  # is not reported as an exception that was never retrieved


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
