"""The checks of requests over a real connection: bytes that no client library sends, and clients that send nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn

from puna.server.app import create_app
from puna.server.guard import connection as connections
from puna.server.guard.connection import Connection, possible_connections
from puna.server.service import Service
from puna.server.settings import Limits, ServerSettings

KEY = "first-key-of-the-tests"


class Impatient(Connection):
    header_seconds = 0.5


class Few(Connection):
    most = 3


@contextlib.contextmanager
def served(app, kind):
    """Yields the address of a server of an application with connections of a class."""
    config = uvicorn.Config(
        app, port=0, http=kind, log_level="critical", lifespan="off", ws="none", server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def address(llm):
    settings = ServerSettings(name="golden", keys=(("alice", KEY),), limits=Limits(body_bytes=2000))
    with served(create_app(Service(llm, settings), settings), Impatient) as name:
        yield name


def exchange(address, data: bytes, more: bytes = b"") -> bytes:
    """Sends bytes, and returns everything until the server closes the connection."""
    with socket.create_connection(address, 5) as connection:
        connection.settimeout(30)
        connection.sendall(data)
        reply = b""
        with contextlib.suppress(ConnectionError):
            if more:
                connection.sendall(more)
            while part := connection.recv(65536):
                reply += part
        return reply


def head(line: str, *headers: str, host: str | None = "127.0.0.1") -> bytes:
    lines = [line, *([] if host is None else [f"Host: {host}"]), *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1")


AUTHORIZATION = f"Authorization: Bearer {KEY}"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("GET /v1/models HTTP/1.1", AUTHORIZATION), 200),
        (head("GET /v1/models HTTP/1.1"), 401),
        (head("GET /health HTTP/1.1"), 200),
        (head("GET http://127.0.0.1/health HTTP/1.1"), 401),
        (head("GET /health%2f..%2fv1/models HTTP/1.1"), 401),
        (head("GET /v1/models?/health HTTP/1.1"), 401),
        (head("GET /health/../v1/models HTTP/1.1"), 401),
        (head("GET /health HTTP/1.1", host="evil.example"), 421),
        (head("GET /v1/models HTTP/1.1", host="127.0.0.1/health?"), 421),
        (head("GET /health HTTP/1.1", host=None), 400),
        (head("GET /health HTTP/1.1", "Host: evil.example"), 400),
        (head("GET /health HTTP/1.0", host=None), 421),
        (head("GET /health HTTP/1.1", "Origin: http://evil.example"), 403),
        (head("POST /v1/chat/completions HTTP/1.1", AUTHORIZATION, "Content-Length: 9999999"), 415),
        (
            head(
                "POST /v1/models HTTP/1.1",
                AUTHORIZATION,
                "Content-Type: application/json",
                "Content-Length: 99999999999999999999",
            ),
            400,
        ),
        (head("GET /health HTTP/1.1", "x: " + "y" * 200_000), 400),
        (head("GET /health HTTP/1.1", "x-request-id: a\x00b"), 400),
    ],
)
def test_bytes_that_no_library_sends(address, data, status):
    reply = exchange(address, data)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode()), reply[:200]
    assert status == 400 or b"x-content-type-options: nosniff" in reply
    assert b"uvicorn" not in reply.lower()


def test_a_body_in_chunks_is_counted_while_it_arrives(address):
    data = head("POST /v1/chat/completions HTTP/1.1", AUTHORIZATION, "Content-Type: application/json",
                "Transfer-Encoding: chunked").replace(b"Connection: close\r\n", b"")  # fmt: skip
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    reply = exchange(address, data, chunk * 3)
    assert reply.startswith(b"HTTP/1.1 413 ") and b"connection: close" in reply.lower()
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("data", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nx: "])
def test_connections_without_a_request_are_closed(address, data):
    with socket.create_connection(address, 5) as connection:
        connection.settimeout(30)  # the default of `header_seconds` is longer
        connection.sendall(data)
        assert connection.recv(100) == b""


def test_a_request_that_follows_another_is_waited_for_as_long_as_the_first(address):
    request = head("GET /health HTTP/1.1").replace(b"Connection: close\r\n", b"")
    with socket.create_connection(address, 5) as connection:
        connection.settimeout(30)
        for _ in range(3):
            connection.sendall(request)
            reply = b""
            while not reply.endswith(b'{"status":"ready"}'):
                reply += connection.recv(65536)
            assert reply.startswith(b"HTTP/1.1 200 ")
        connection.sendall(request[:20])
        assert connection.recv(100) == b""


def test_an_answer_may_take_longer_than_the_headers(address):
    body = {
        "model": "golden",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 200,
        "ignore_eos": True,
        "n": 8,
    }
    data = json.dumps({**body, "temperature": 1}).encode()
    request = head("POST /v1/chat/completions HTTP/1.1", AUTHORIZATION, "Content-Type: application/json",
                   f"Content-Length: {len(data)}")  # fmt: skip
    with socket.create_connection(address, 30) as connection:
        connection.sendall(request + data[:10])
        time.sleep(0.8)
        connection.sendall(data[10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


LARGE = 8 << 20
"""Bytes of an answer that the system's buffers of a connection cannot hold."""


class Application:
    """Answers with many bytes at /large, and with a stream at /stream, which ends when `end` is set."""

    def __init__(self) -> None:
        self.end = threading.Event()

    async def __call__(self, scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        size = LARGE if scope["path"] == "/large" else 4
        headers = [] if scope["path"] == "/stream" else [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"begin", "more_body": True})
            while not self.end.is_set():
                await asyncio.sleep(0.005)
        await send({"type": "http.response.body", "body": b"x" * (size - 3) + b"end"})


class Clients(contextlib.ExitStack):
    """Connections to a server of `Application` that has at most three."""

    def __enter__(self) -> Clients:
        super().__enter__()
        self.application = Application()
        self.address = self.enter_context(served(self.application, Few))
        self.callback(self.application.end.set)
        return self

    def open(self, data: bytes = b"", end: bytes = b"") -> socket.socket:
        """Sends bytes on a new connection, and reads until an end."""
        connection = self.enter_context(socket.create_connection(self.address, 5))
        connection.settimeout(30)
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        if end:
            until(connection, end)
        return connection


def until(connection: socket.socket, end: bytes) -> bytes:
    """Reads until an end, or until the server closes the connection."""
    reply = b""
    with contextlib.suppress(ConnectionError):
        while not reply.endswith(end) and (part := connection.recv(65536)):
            reply += part
    return reply


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


@pytest.mark.parametrize("data", [b"", get("/")[:-2] + b"x: ", get("/")[:-2] + b"Content-Length: 99\r\n\r\n"])
def test_clients_that_send_nothing_do_not_keep_others_out(data):
    with Clients() as clients:
        reader = clients.open(get("/stream"), b"begin\r\n")
        silent = [clients.open(data) for _ in range(12)]
        assert until(clients.open(get("/")), b"end").startswith(b"HTTP/1.1 200 ")
        assert until(silent[0], b"never") == b""  # the oldest is closed
        clients.application.end.set()
        assert until(reader, b"0\r\n\r\n").endswith(b"end\r\n0\r\n\r\n")  # a stream is not


def test_clients_that_do_not_read_do_not_keep_others_out():
    with Clients() as clients:
        unread = []
        for _ in range(12):
            connection = clients.open(get("/large"))
            assert connection.recv(9) == b"HTTP/1.1 "  # the application is done, and the answer is not sent
            unread.append(connection)
        sizes = [len(until(connection, b"end")) for connection in unread]
        assert [size > LARGE for size in sizes] == [False] * 9 + [True] * 3


def test_a_connection_waits_for_its_client_since_its_last_answer():
    with Clients() as clients:
        answered = clients.open(get("/stream"), b"begin\r\n")
        silent = [clients.open(get("/"), b"end") for _ in range(2)]
        clients.application.end.set()
        assert until(answered, b"0\r\n\r\n").endswith(b"end\r\n0\r\n\r\n")
        clients.open(get("/"), b"end")
        assert until(silent[0], b"never") == b""
        for connection in (answered, silent[1]):
            connection.sendall(get("/"))
            assert until(connection, b"end").startswith(b"HTTP/1.1 200 ")


def test_the_number_of_connections_fits_the_limit_of_open_files(monkeypatch, caplog):
    calls = []
    monkeypatch.setattr(connections.resource, "setrlimit", lambda kind, limits: calls.append(limits))
    unlimited = connections.resource.RLIM_INFINITY
    for limits, most, raised in (
        ((1024, 1_000_000), 1024, [(1408, 1_000_000)]),
        ((1024, unlimited), 1024, [(1408, unlimited)]),
        ((1024, 1024), 640, [(1024, 1024)]),
        ((256, 256), 1, [(256, 256)]),
        ((65_536, 65_536), 1024, []),
        ((unlimited, unlimited), 1024, []),
    ):
        calls.clear()
        caplog.clear()
        monkeypatch.setattr(connections.resource, "getrlimit", lambda kind, limits=limits: limits)
        assert (possible_connections(), calls) == (most, raised)
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == (most < 1024)
        assert all(f"at most {most} connections" in line and "raise the limit to 1408" in line for line in warnings)
