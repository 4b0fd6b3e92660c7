"""`Guard`: the checks that a request must pass before it reaches the application.

The checks depend only on the raw path, the method and the headers of the ASGI scope. No URL is rebuilt from headers: in
another server, a crafted Host header in such a URL bypassed the key. Every path that is not listed as open needs a key.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.errors import ConfigError
from puna.server.errors import ApiError, to_json
from puna.server.guard.callers import Caller, KeyRing
from puna.server.guard.exchange import error_body, exchange_of, header_values

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
"""Paths that need no key, for GET and HEAD; the files of the page are added to them."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of this machine, which the web pages of other sites cannot have as their host."""

_HOST = re.compile(rb"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,252}))(?::[0-9]{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(rb"https?://([^/?#@\s]+)", re.IGNORECASE)
_JSON = re.compile(rb"application/json\s*(;\s*charset\s*=\s*\"?utf-8\"?\s*)?", re.IGNORECASE)
_READING = ("GET", "HEAD")
_METHODS = (*_READING, "OPTIONS", "POST")
"""The methods that this server knows. A list of refused methods would miss one."""
_CLOSING = (408, 413)
"""Statuses after which the connection is closed: the body may not have been read to its end."""

_LENGTH_DIGITS = 18
_HEADERS, _HEADER_BYTES, _PATH_BYTES = 100, 32_768, 8192
"""Maximum number of headers, their total size, and the size of the path with the query."""


@dataclass(frozen=True)
class Policy:
    """Which requests are accepted.

    Attributes:
        keys: the API keys; if there are none, requests need none.
        hosts: values of the header Host without the port, in lower case, in addition to `LOOPBACK`.
        origins: origins of other sites whose pages may use the server; "*" means all.
        open_paths: paths that need no key.
        body_bytes: maximum bytes of a body.
        body_seconds: maximum time until a body has arrived.
    """

    keys: KeyRing
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    open_paths: frozenset[str] = OPEN_PATHS
    body_bytes: int = 4_000_000
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        for host in self.hosts:
            if _HOST.fullmatch(host.encode()) is None or host.rpartition(":")[2].isdigit():
                raise ConfigError(
                    f"--allowed-host {host!r} must be a host name or an address, without a port or a path"
                )
        for origin in self.origins - {"*"}:
            if _ORIGIN.fullmatch(origin.encode()) is None:
                raise ConfigError(
                    f"--allow-origin {origin!r} must have the form https://name or https://name:port, or be *"
                )


def check_address(host: str, keys: KeyRing, insecure: bool) -> None:
    """Raises ConfigError if other machines could use the server without a key.

    Args:
        host: the address to listen at.
        keys: the API keys.
        insecure: whether the user accepts this.
    """
    if keys or insecure or _is_loopback(host):
        return
    raise ConfigError(
        f"--host {host} lets other machines use the server without a key; give keys with --api-key-file or "
        "PUNA_API_KEYS, listen at 127.0.0.1, or accept the risk with --insecure"
    )


class Guard:
    """ASGI middleware that refuses the requests that the policy does not allow.

    Args:
        application: the next ASGI application.
        policy: which requests are accepted.
    """

    def __init__(self, application: ASGIApp, policy: Policy) -> None:
        self._application = application
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            return await self._application(scope, receive, send)
        if scope["type"] != "http":  # no client needs WebSockets
            return await send({"type": "websocket.close", "code": 1008})
        started = False

        async def tracked_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] in _CLOSING:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            exchange_of(scope).caller = check_request(scope, self._policy)
            if answers_preflight(scope, self._policy):
                await send({"type": "http.response.start", "status": 204, "headers": _preflight_headers()})
                return await send({"type": "http.response.body", "body": b""})
            inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            return await self._application(inner, limited_receive(scope, receive, self._policy), tracked_send)
        except ApiError as error:
            if started:
                raise
            return await send_error(error, scope, send)


async def send_error(error: ApiError, scope: Scope, send: Send) -> None:
    """Sends an error as the response to a request. Closes the connection if the request's body may be unread."""
    body = to_json(error_body(error, scope))
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if error.status == 401 else []
    headers += [(b"connection", b"close")] if error.status in _CLOSING or not _has_one_length(scope) else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def check_request(scope: Scope, policy: Policy) -> Caller:
    """Returns who sent a request.

    Raises:
        ApiError: the request is refused; the message contains nothing from the request.
    """
    _check_sizes(scope)
    _check_host(scope, policy)
    _check_origin(scope, policy)
    caller = _check_key(scope, policy)
    if scope["method"] not in _METHODS:
        raise ApiError(405, f"the method of the request is not allowed; use {', '.join(_METHODS)}", allow=_METHODS)
    if scope["method"] == "POST":
        _check_content_type(scope)
    _check_content_length(scope, policy)
    return caller


def limited_receive(scope: Scope, receive: Receive, policy: Policy) -> Receive:
    """Returns a `receive` that refuses a body that is too large or too slow. It counts bytes as they arrive."""
    total = 0
    complete = False
    loop = asyncio.get_running_loop()
    deadline = loop.time() + policy.body_seconds

    async def limited() -> Message:
        nonlocal total, complete
        if complete:
            return await receive()
        arrival = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({arrival}, timeout=max(0.0, deadline - loop.time()))
            if not arrival.done():
                raise ApiError(408, f"the body did not arrive within {policy.body_seconds:g} seconds")
        finally:
            arrival.cancel()  # without effect if the message has arrived
        message = arrival.result()
        total += len(message.get("body", b""))
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        if total > policy.body_bytes:
            raise _too_large(policy)
        return message

    return limited


def answers_preflight(scope: Scope, policy: Policy) -> bool:
    """Returns whether a request is the preflight request of a page of an allowed origin."""
    return (
        scope["method"] == "OPTIONS"
        and allowed_origin(scope, policy) is not None
        and any(header_values(scope, b"access-control-request-method"))
    )


def allowed_origin(scope: Scope, policy: Policy) -> bytes | None:
    """Returns the origin of a request if it is one of `--allow-origin`, or None."""
    origin = next(header_values(scope, b"origin"), None)
    if origin is None or not ("*" in policy.origins or origin.decode("latin-1") in policy.origins):
        return None
    return origin


def origin_headers(scope: Scope, policy: Policy) -> list[tuple[bytes, bytes]]:
    """Returns the headers that let a page of an allowed origin read a response; [] for all other requests."""
    origin = allowed_origin(scope, policy)
    if origin is None:
        return []
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"x-request-id, request-id, x-puna-ignored, x-puna-replica, retry-after"),
        (b"vary", b"Origin"),
    ]


def _preflight_headers() -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-methods", b"GET, POST"),
        (
            b"access-control-allow-headers",
            b"authorization, content-type, x-api-key, x-request-id, x-session-id, anthropic-version, anthropic-beta, "
            b"traceparent",
        ),
        (b"access-control-max-age", b"600"),
    ]


def _check_sizes(scope: Scope) -> None:
    if len(scope["headers"]) > _HEADERS:
        raise ApiError(431, f"the request has more than {_HEADERS} headers")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEADER_BYTES:
        raise ApiError(431, f"the headers of the request have more than {_HEADER_BYTES} bytes")
    if len(scope.get("raw_path") or scope["path"].encode()) + len(scope.get("query_string", b"")) > _PATH_BYTES:
        raise ApiError(414, f"the path of the request has more than {_PATH_BYTES} bytes")


def _check_host(scope: Scope, policy: Policy) -> None:
    """Refuses requests for other host names: with DNS rebinding, another site's name leads to this machine."""
    hosts = list(header_values(scope, b"host"))
    match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is not None:
        name = match[1].decode("ascii").lower()
        if name in LOOPBACK or name in policy.hosts or name == _own_address(scope):
            return
    raise ApiError(
        421,
        "the Host header of the request is not a name of this server; use the server's address, or start the server "
        "with --allowed-host NAME",
        code="host_not_allowed",
    )


def _own_address(scope: Scope) -> str | None:
    """Returns the IP address at which the connection arrived: a page of another site has a name, never this address."""
    address = (scope.get("server") or ("",))[0]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return f"[{parsed}]" if parsed.version == 6 else str(parsed)


def _check_origin(scope: Scope, policy: Policy) -> None:
    """Refuses requests of other sites' pages with any method: browsers send some of them without a preflight."""
    origins = list(header_values(scope, b"origin"))
    if not origins or (len(origins) == 1 and allowed_origin(scope, policy) is not None):
        return
    match = _ORIGIN.fullmatch(origins[0]) if len(origins) == 1 else None
    if match is None or match[1].lower() != next(header_values(scope, b"host")).lower():
        raise ApiError(
            403,
            "the request comes from a page of another site; start the server with --allow-origin ORIGIN to allow it",
            code="origin_not_allowed",
        )


def _check_key(scope: Scope, policy: Policy) -> Caller:
    if not policy.keys:
        return Caller()
    caller = policy.keys.identify(_presented_keys(scope))
    if caller is not None:
        return caller
    is_open = scope["method"] in _READING and scope["path"] in policy.open_paths
    if is_open or answers_preflight(scope, policy):
        return Caller()
    raise ApiError(
        401,
        "the request has no valid API key; send one in the header Authorization: Bearer KEY, or x-api-key: KEY",
        code="invalid_api_key",
    )


def _presented_keys(scope: Scope) -> Iterable[bytes]:
    yield from header_values(scope, b"x-api-key")
    for value in header_values(scope, b"authorization"):
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            yield key.strip()


def _check_content_type(scope: Scope) -> None:
    """Requires JSON: for it, a browser sends a preflight request before the request of another site's page."""
    kinds = list(header_values(scope, b"content-type"))
    if len(kinds) != 1 or _JSON.fullmatch(kinds[0].strip()) is None:
        raise ApiError(415, "the body must be JSON in UTF-8; send the header Content-Type: application/json")
    if any(value.strip().lower() not in (b"", b"identity") for value in header_values(scope, b"content-encoding")):
        raise ApiError(415, "compressed bodies are not accepted; send the body without Content-Encoding")


def _check_content_length(scope: Scope, policy: Policy) -> None:
    if not _has_one_length(scope):
        raise ApiError(
            400, "the end of the body is not certain; send either one valid Content-Length or Transfer-Encoding"
        )
    if any(int(value) > policy.body_bytes for value in header_values(scope, b"content-length")):
        raise _too_large(policy)


def _has_one_length(scope: Scope) -> bool:
    """Returns whether the end of the body is certain. Otherwise a proxy might see another request in the body."""
    lengths = list(header_values(scope, b"content-length"))
    is_valid = all(value.isdigit() and len(value) <= _LENGTH_DIGITS for value in lengths)
    return is_valid and len(lengths) + any(header_values(scope, b"transfer-encoding")) <= 1


def _too_large(policy: Policy) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {policy.body_bytes} bytes; shorten it, or start the server with a larger "
        "--max-body-bytes",
        code="body_too_large",
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
