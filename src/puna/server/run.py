"""`run`: serves an application with uvicorn until a signal, and lets running requests finish."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from puna.errors import ServerError
from puna.server.guard.connection import BACKLOG, Connection, possible_connections
from puna.server.service import Service

log = logging.getLogger(__name__)

_INTERRUPTED = 130
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses at which this machine reaches a server that listens at all addresses."""

_CLOSE_SECONDS = 1
"""Time for streams to send their error after the deadline."""


def run(app: ASGIApp, service: Service, on_ready: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM. A second signal ends the process at once.

    After the first signal, /health/ready and new requests are answered with 503, and running requests have
    `drain_seconds` to finish.

    Args:
        on_ready: called with the server's URL when the model has been loaded.

    Raises:
        ServerError: the address cannot be used.
        PunaError: the model could not be loaded.
    """
    settings = service.settings
    Connection.most = possible_connections()
    config = uvicorn.Config(
        app, http=Connection, backlog=BACKLOG, loop="asyncio", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False, timeout_graceful_shutdown=_CLOSE_SECONDS, timeout_keep_alive=75,
        proxy_headers=False,
    )  # fmt: skip
    server = _Server(config, service, on_ready)
    asyncio.run(server.run_at(settings.host, settings.port))
    if service.error is not None:
        raise service.error


class _Server(uvicorn.Server):
    """uvicorn's server. It also reports when the model is ready, and drains the service before it stops."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready: Callable[[str], None] | None = on_ready
        self._url = ""
        self._deadline: float | None = None
        self._reported = False

    async def run_at(self, host: str, port: int) -> None:
        """Serves at an address."""
        sockets = await _listen(host, port)
        number = sockets[0].getsockname()[1]
        host = _LOOPBACK.get(host, host)
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{number}"
        try:
            await self.serve(list(sockets))
        finally:
            await asyncio.to_thread(self._service.close)

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to stop; uvicorn calls it ten times a second."""
        state = self._service.state
        if self._on_ready is not None and state == "ready":
            gc.collect()
            gc.freeze()  # the garbage collector then skips modules and tables, which are needed until the process ends
            self._on_ready(self._url)
            self._on_ready = None
        if state == "failed":
            self.should_exit = True
        if self._deadline is not None:
            self._report_drain()
            if not self.server_state.tasks:
                self.should_exit = True
            elif time.monotonic() > self._deadline:
                self.should_exit = True
                await asyncio.to_thread(self._service.close)  # streams end with an error
        return await super().on_tick(counter)

    def _report_drain(self) -> None:
        count = 0 if self._reported else len(self.server_state.tasks)
        self._reported = True
        if count:
            seconds = self._service.settings.drain_seconds
            log.warning("stopping: %d running requests have %g s to finish; Ctrl-C ends the server at once",
                        count, seconds)  # fmt: skip

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal: the first drains the service, the second ends the process."""
        if self._deadline is not None:
            os._exit(_INTERRUPTED)
        self._service.drain()
        self._deadline = time.monotonic() + self._service.settings.drain_seconds


async def _listen(host: str, port: int) -> Sequence[Any]:
    """Returns sockets that listen at an address; port 0 is any free port.

    Raises:
        ServerError: the address cannot be used.
    """
    loop = asyncio.get_running_loop()
    try:
        listener = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.errno in (errno.EADDRINUSE, errno.EACCES):
            what, remedy = (
                f"port {port} at {host}",
                "choose another with --port, or stop the program that uses the port",
            )
        else:
            what, remedy = f"--host {host}", "give an address of this machine, such as 127.0.0.1"
        raise ServerError(f"{what} cannot be used ({reason}); {remedy}") from exc
    sockets = [sock.dup() for sock in listener.sockets]
    listener.close()
    return sockets
