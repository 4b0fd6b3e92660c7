"""Server-sent events: a stream that sends pings, and ends its generation if the client disconnects or is too slow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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


def openai_error(error: ApiError, request_id: str | None) -> bytes:
    """Returns the event for an error inside a stream."""
    return data(error.openai())


class EventStream(Response):
    """A response of server-sent events.

    Args:
        events: yields the bytes of events; closed when the client disconnects.
        cancel: ends the generation; called whenever the stream ends.
        render_error: returns the event for an error inside the stream, given the error and the id of the request.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        settings: ServerSettings,
        *,
        cancel: Callable[[], None] = lambda: None,
        headers: Mapping[str, str] | None = None,
        render_error: Callable[[ApiError, str | None], bytes] = openai_error,
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
        task = asyncio.current_task()
        assert task is not None
        watch = _Watch(task, send, self._settings)
        watcher = asyncio.ensure_future(watch.run())
        try:
            async for body in self._events:
                await watch.send(body)
        except (Exception, asyncio.CancelledError) as exc:
            cause = watch.error or exc
            if isinstance(cause, asyncio.CancelledError):
                raise
            if isinstance(cause, _SlowReaderError):
                log.warning("a stream was ended because its client did not read it")
                return
            request_id = scope.get("state", {}).get("request_id")
            error = api_error(cause, request_id)
            if error.status == 500:
                log.exception("an error ended a stream")
            await watch.send(self._render_error(error, request_id))
        finally:
            watcher.cancel()
        await watch.send(b"", more=False)


class _SlowReaderError(Exception):
    """The client has not read the stream for too long."""


class _Watch:
    """Sends the events of a stream and enforces its time limits.

    One task per stream checks the time, because a timer per event would cost more. It sends a comment when there has
    been no event for a while, and cancels the task that writes the stream when the stream or the sending of an event
    takes too long.

    Attributes:
        error: why the task was cancelled; None if this object has not cancelled it.
    """

    def __init__(self, task: asyncio.Task[Any], send: Send, settings: ServerSettings) -> None:
        self.error: Exception | None = None
        self._task = task
        self._send = send
        self._ping, self._slow = settings.ping_seconds, settings.slow_reader_seconds
        self._since = time.monotonic()  # when sending began, or ended if nothing is being sent
        self._deadline = self._since + settings.request_seconds
        self._is_sending = False

    async def send(self, body: bytes, more: bool = True) -> None:
        """Sends a part of the body."""
        self._since, self._is_sending = time.monotonic(), True
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._since, self._is_sending = time.monotonic(), False

    async def run(self) -> None:
        """Checks the time until this task is cancelled, or has cancelled the stream."""
        while self.error is None:
            now = time.monotonic()
            rest = (self._slow if self._is_sending else self._ping) - (now - self._since)
            if now >= self._deadline:
                self.error = timeout_error()
            elif rest > 0:
                await asyncio.sleep(min(rest, self._ping, self._slow, self._deadline - now))
            elif self._is_sending:
                self.error = _SlowReaderError()
            else:
                self._since = now
                await self._send_ping()
        self._task.cancel()

    async def _send_ping(self) -> None:
        try:
            message = {"type": "http.response.body", "body": PING, "more_body": True}
            await asyncio.wait_for(self._send(message), self._slow)
        except asyncio.TimeoutError:
            self.error = _SlowReaderError()


def timeout_error() -> ApiError:
    """Returns the error for a request that takes too long."""
    message = "the answer took too long; request fewer tokens, or start the server with a larger --request-seconds"
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
            task.exception()  # otherwise asyncio reports an exception that was never retrieved


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
