"""`EventStream`: comments while there is no event, errors inside the stream, time limits, and slow readers."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

pytest.importorskip("starlette")

from puna.errors import RequestError
from puna.server.events import PING, EventStream, data
from puna.server.settings import ServerSettings


async def never(*_):
    await asyncio.sleep(60)


def run(events, receive=never, blocks=False, parts=None, **settings):
    """Returns the parts of the body, which are appended to `parts`, and whether the generation was cancelled."""
    parts, cancelled = [] if parts is None else parts, []

    async def send(message):
        if message["type"] == "http.response.body":
            parts.append(message["body"])
            if blocks:
                await never()

    async def main():
        stream = EventStream(events(), ServerSettings(**settings), cancel=lambda: cancelled.append(True))
        await stream({"type": "http", "path": "/v1/chat/completions"}, receive, send)

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 10
    return parts, bool(cancelled)


async def slow_events():
    yield data("a")
    await asyncio.sleep(0.12)
    yield data("b")


def test_comments_are_sent_while_there_is_no_event():
    async def events():
        yield data("a")
        while len(parts) < 3:
            await asyncio.sleep(0.01)
        yield data("b")

    parts = []
    _, cancelled = run(events, parts=parts, ping_seconds=0.03)
    assert parts[0] == b'data: "a"\n\n'
    assert parts[-2:] == [b'data: "b"\n\n', b""]
    assert set(parts[1:-2]) == {PING}
    assert cancelled
    assert PING not in run(slow_events)[0]


def test_an_error_is_an_event_and_ends_the_stream():
    async def events():
        yield data("a")
        raise RequestError("too long")

    parts, _ = run(events)
    assert json.loads(parts[1].removeprefix(b"data: "))["error"]["message"] == "too long"
    assert parts[2:] == [b""]


def test_a_stream_ends_at_the_time_limit():
    async def events():
        yield data("a")
        await never()

    parts, cancelled = run(events, request_seconds=0.3)
    assert json.loads(parts[1].removeprefix(b"data: "))["error"]["code"] == "request_timeout"
    assert cancelled


@pytest.mark.parametrize("ping_seconds", [0.02, 15.0])
def test_a_slow_reader_ends_the_stream(ping_seconds):
    parts, cancelled = run(slow_events, blocks=True, slow_reader_seconds=0.05, ping_seconds=ping_seconds)
    assert parts == [b'data: "a"\n\n']
    assert cancelled


def test_a_disconnect_ends_the_stream():
    async def events():
        while True:
            yield data("a")
            await asyncio.sleep(0.01)

    async def receive():
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    _, cancelled = run(events, receive)
    assert cancelled
