"""`Connection`: uvicorn's HTTP/1.1 connection, with a limit on the time until the headers of a request have arrived."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes a connection that is opened and sends no request, or sends one very slowly.

    uvicorn waits without a limit for the headers of a request, so that a few clients could use up all connections. It
    limits the time between two requests, and `Guard` the time until a body has arrived.
    """

    header_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        self._wait()
        super().data_received(data)
        if self._answers:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _answers(self) -> bool:
        """Whether the headers of a request have arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._timer is None and not self._answers:
            self._timer = self.loop.call_later(self.header_seconds, self._close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if not self._answers and not self.transport.is_closing():
            self.transport.close()
