"""Calls an ASGI application without a network, so that any byte can be sent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """What an application sent."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} was sent twice"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A client that may stop reading, and disconnect."""

    def __init__(self) -> None:
        self.reply = Reply()
        self.arrived, self.gone, self.reading = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.reading.set()


def scope_of(
    method: str = "POST",
    path: str = "/v1/models",
    headers: list[tuple[str, str | bytes]] | None = None,
    server: tuple[str, int] = ("127.0.0.1", 8000),
    query: bytes = b"",
) -> dict[str, Any]:
    """Returns a scope; Host and Content-Type have usual values unless `headers` contains them."""
    pairs = [
        (name.lower().encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers or []
    ]
    names = {name for name, _ in pairs}
    usual = [(b"host", b"127.0.0.1:8000")] + [(b"content-type", b"application/json")] * (method != "GET")
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": [item for item in usual if item[0] not in names]
        + [item for item in pairs if item[1] != b"<absent>"],
        "server": server,
        "client": ("127.0.0.1", 50000),
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
    }


def call(application: Any, scope: dict[str, Any], body: bytes | list[bytes] = b"") -> Reply:
    """Returns the reply to one request, whose body arrives in one or several parts."""
    return asyncio.run(call_async(application, scope, body))


async def call_async(
    application: Any, scope: dict[str, Any], body: bytes | list[bytes] = b"", connection: Connection | None = None
) -> Reply:
    """Does the same as `call` in a running event loop."""
    parts = [body] if isinstance(body, bytes) else list(body)
    connection = connection or Connection()
    reply = connection.reply

    async def receive() -> dict[str, Any]:
        if not parts:
            await connection.gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert reply.status == 0, "two responses"
            reply.status = message["status"]
            reply.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
        else:
            reply.body += message.get("body", b"")
            connection.arrived.set()
            await connection.reading.wait()

    await application(scope, receive, send)
    return reply
