"""`Connection`: uvicorn's HTTP/1.1 connection, with limits of their number and of the time until headers arrive."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("puna.server")

BACKLOG = 128
"""Connections that the system holds until they are accepted. asyncio accepts as many before it serves any of them."""

_CONNECTIONS = 1024
"""Maximum number of connections: more than requests that run and wait, by default 64 and 256."""

_OTHER_FILES = 2 * BACKLOG + 128
"""Open files of other kinds, and connections that have been accepted or closed and are not counted."""


def possible_connections() -> int:
    """Returns how many connections the limit of open files allows; raises this limit where the system permits it.

    Logs a warning if the limit allows fewer connections than usual.

    Without free file descriptors, asyncio accepts no connection for a second, and writes a log of thousands of lines.
    """
    wanted = _CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _CONNECTIONS
    most = max(1, soft - _OTHER_FILES)
    log.warning("the system allows %d open files, so the server accepts at most %d connections at a time instead of "
                "%d; raise the limit to %d (ulimit -Hn, LimitNOFILE of systemd, --ulimit nofile of Docker)",
                soft, most, _CONNECTIONS, wanted)  # fmt: skip
    return most


class Connection(H11Protocol):
    """Closes connections that send no request, or send its headers too slowly, and the oldest of too many connections.

    uvicorn waits without a limit for the headers of a request, so that a few clients could use up all connections.
    Other times have limits already: uvicorn limits the time between two requests, and `Guard` the time until a body has
    arrived.

    Attributes:
        header_seconds: maximum time until the headers have arrived. Headers fit in a few packets, also of slow clients.
        most: maximum number of connections. One more ends the connection that has waited longest for its client, so
            that clients that send nothing, or read nothing, cannot keep others out.
    """

    header_seconds = 30.0
    most = _CONNECTIONS
    _timer: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.most:
            waiting = [item for item in self.connections if isinstance(item, Connection) and item._waits_for_client]
            victim = min(waiting, key=lambda item: item._since)
            self.connections.discard(victim)
            victim.transport.abort()  # close() would wait until a client that reads nothing has read everything

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        self._wait()
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        self._since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        """Whether the headers of a request have arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _waits_for_client(self) -> bool:
        """Whether no complete request has arrived that is not yet answered; the end of an answer may be unread."""
        return self.transport.is_closing() or not self._is_answering or self.cycle.more_body

    def _wait(self) -> None:
        if self._timer is None and not self._is_answering:
            self._since = self.loop.time()
            self._timer = self.loop.call_later(self.header_seconds, self._close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if not self._is_answering and not self.transport.is_closing():
            self.transport.close()
