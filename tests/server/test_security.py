"""The checks before the application. Each row of a table is an incident of another server, or its variation."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from puna.errors import ConfigError
from puna.server.guard import callers as callers_module
from puna.server.guard.access_log import SECURITY_HEADERS, OuterMiddleware
from puna.server.guard.callers import KeyRing, read_keys
from puna.server.guard.exchange import exchange_of
from puna.server.guard.security import OPEN_PATHS, Guard, Policy, check_address
from tests.server.asgi import Reply, call, call_async, scope_of

KEY, OTHER = "first-key-of-the-tests", "second-key-of-the-tests"
KEYS = KeyRing([("alice", KEY), ("bob", OTHER)])


async def application(scope, receive, send):
    """Reads the body and answers 200 with the caller and the number of bytes."""
    size, more = 0, scope["method"] != "GET"
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    body = json.dumps([exchange_of(scope).caller.name, size]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


def request(policy: Policy, scope, body=b"{}", lines=None) -> Reply:
    outer = OuterMiddleware(Guard(application, policy), log=None if lines is None else lines.append)
    return call(outer, scope, body)


OPEN = Policy(KeyRing())
CLOSED = Policy(KEYS)
BEARER = ("authorization", f"Bearer {KEY}")


@pytest.mark.parametrize(
    ("host", "keys", "insecure", "allowed"),
    [
        ("127.0.0.1", KeyRing(), False, True),
        ("127.8.0.1", KeyRing(), False, True),
        ("localhost", KeyRing(), False, True),
        ("::1", KeyRing(), False, True),
        ("0.0.0.0", KeyRing(), False, False),  # Ollama, CVE-2026-7482: 300,000 reachable servers
        ("::", KeyRing(), False, False),
        ("", KeyRing(), False, False),
        ("192.168.1.2", KeyRing(), False, False),
        ("localhost.example.com", KeyRing(), False, False),
        ("0.0.0.0", KEYS, False, True),
        ("0.0.0.0", KeyRing(), True, True),
    ],
)
def test_other_machines_need_a_key(host, keys, insecure, allowed):
    if allowed:
        check_address(host, keys, insecure)
    else:
        with pytest.raises(ConfigError, match="--insecure"):
            check_address(host, keys, insecure)


PATHS = [
    ("/v1/chat/completions", 401),
    ("/invocations", 401),  # vLLM's --api-key guarded only /v1
    ("/pause", 401),
    ("/metrics", 401),
    ("/tokenize", 401),
    ("/openapi.json", 401),
    ("/", 401),
    ("//health", 401),
    ("/health/", 401),
    ("/health/../v1/models", 401),
    ("/health?/v1/models", 401),
    ("/HEALTH", 401),
    ("/health\x00", 401),
    ("http://127.0.0.1/health", 401),
    ("", 401),
    ("/health", 200),
    ("/health/ready", 200),
    ("/ping", 200),
]


@pytest.mark.parametrize(("path", "status"), PATHS)
def test_a_key_is_needed_for_every_path_that_is_not_listed_as_open(path, status):
    assert request(CLOSED, scope_of("GET", path)).status == status
    assert request(CLOSED, scope_of("GET", path, [BEARER])).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "get"])
def test_open_paths_are_open_for_reading_only(method):
    for path in OPEN_PATHS:
        assert request(CLOSED, scope_of(method, path)).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Basic {KEY}")],
        [("authorization", KEY)],
        [("authorization", f"Bearer {KEY}x")],
        [("authorization", f"Bearer {KEY[:-1]}")],
        [("authorization", f"Bearer {KEY.upper()}")],
        [("authorization", b"Bearer \xff\xfe\x00")],
        [("x-api-key", "")],
        [("x-api-key", f"{KEY},{OTHER}")],
        [("api-key", KEY)],
        [("cookie", f"key={KEY}")],
    ],
)
def test_wrong_keys_are_refused(headers):
    reply = request(CLOSED, scope_of(headers=headers))
    assert reply.status == 401 and reply.header("www-authenticate") == "Bearer"
    assert reply.json["error"]["code"] == "invalid_api_key"
    assert KEY not in reply.body.decode()


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([BEARER], "alice"),
        ([("authorization", f"bearer  {OTHER} ")], "bob"),
        ([("x-api-key", OTHER)], "bob"),
        ([("x-api-key", KEY), ("authorization", "Bearer stale-token-of-a-client")], "alice"),
    ],
)
def test_keys_identify_their_owner(headers, name):
    assert request(CLOSED, scope_of(headers=headers)).json == [name, 2]


def test_a_key_in_the_url_is_not_accepted_and_not_logged():
    lines: list[str] = []
    reply = request(CLOSED, scope_of(query=f"api_key={KEY}&key={KEY}".encode()), lines=lines)
    assert reply.status == 401 and len(lines) == 1 and KEY not in lines[0]


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """vLLM, CVE-2025-59425: `==` on keys shows by its time how many characters are right."""
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(callers_module.hmac, "compare_digest", compare)
    for key in (KEY, OTHER, "no", "x" * 100_000):
        compared.clear()
        KEYS.identify([key.encode()])
        assert compared == [(32, 32), (32, 32)]


HOSTS = [
    ("127.0.0.1:8000", True),
    ("localhost", True),
    ("LocalHost:9", True),
    ("[::1]:8000", True),
    ("llama.example:443", True),
    ("evil.example", False),  # DNS rebinding: Ray CVE-2026-27482, MCP SDK CVE-2025-66414
    ("localhost.evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("llama.example.", False),
    ("10.0.0.7", False),
    ("evil.example/health", False),  # vLLM CVE-2026-48746: the path was read from a URL rebuilt with the Host header
    ("127.0.0.1/health?", False),
    ("127.0.0.1?/health", False),
    ("127.0.0.1#/health", False),
    ("user@127.0.0.1", False),
    ("127.0.0.1:8000:1", False),
    ("127.0.0.1:port", False),
    ("127.0.0.1,evil.example", False),
    ("127.0.0.1 evil.example", False),
    ("127.0.0.1\r\nx: y", False),
    ("127.0.0.1\n", False),
    ("127.1", False),
    ("2130706433", False),
    ("0.0.0.0", False),
    ("::1", False),
    ("", False),
    (b"\xff\xfe", False),
    ("\u212aocalhost", False),
    ("<absent>", False),
]


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
@pytest.mark.parametrize(("host", "allowed"), HOSTS)
def test_only_names_of_the_server_are_accepted_as_host(host, allowed, path):
    policy = Policy(KEYS, hosts=frozenset({"llama.example"}))
    reply = request(policy, scope_of("GET", path, [("host", host), BEARER]))
    assert reply.status == (200 if allowed else 421)
    if not allowed:
        assert reply.json["error"]["code"] == "host_not_allowed"


def test_two_host_headers_are_refused():
    headers = [("host", "localhost"), ("host", "localhost")]
    assert request(OPEN, scope_of("GET", headers=headers)).status == 421


def test_the_address_of_the_connection_is_a_name_of_the_server():
    for address, host in (("10.0.0.7", "10.0.0.7:8000"), ("fd00::7", "[fd00::7]"), ("/run/puna.sock", "localhost")):
        assert request(CLOSED, scope_of("GET", "/health", [("host", host)], server=(address, 8000))).status == 200
    assert request(OPEN, scope_of("GET", headers=[("host", "name")], server=("name", 80))).status == 421


ORIGINS = [
    ("http://127.0.0.1:8000", 200),
    ("https://127.0.0.1:8000", 200),
    ("http://evil.example", 403),
    ("http://127.0.0.1:3000", 403),
    ("http://127.0.0.1", 403),
    ("http://127.0.0.1:8000.evil.example", 403),
    ("http://127.0.0.1:8000/", 403),
    ("http://evil@127.0.0.1:8000", 403),
    ("null", 403),
    ("", 403),
    ("file://", 403),
    ("chrome-extension://abc", 403),
    ("http://127.0.0.1:8000 http://evil.example", 403),
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(("origin", "status"), ORIGINS)
def test_pages_of_other_sites_are_refused_with_every_method(origin, status, method):
    """Ray, CVE-2025-62593: a list of refused methods did not contain DELETE."""
    allowed = 405 if method in ("PUT", "PATCH", "DELETE") else 200
    for policy in (OPEN, CLOSED):
        reply = request(policy, scope_of(method, headers=[("origin", origin), BEARER]))
        assert reply.status == (allowed if status == 200 else status)


def test_no_header_allows_other_origins_unless_the_user_does():
    """llama-server reflects every Origin, with credentials."""
    preflight = [("access-control-request-method", "POST"), ("origin", "http://evil.example")]
    for headers in ([("origin", "http://127.0.0.1:8000")], preflight, []):
        for method in ("GET", "OPTIONS"):
            reply = request(OPEN, scope_of(method, headers=headers))
            assert not [name for name, _ in reply.headers if name.startswith("access-control")]


CONTENT_TYPES = [
    ("application/json", 200),
    ("application/json; charset=utf-8", 200),
    ("Application/JSON;charset=UTF-8", 200),
    ('application/json; charset="utf-8"', 200),
    ("application/json; charset=utf-16", 415),
    ("text/plain", 415),  # a form of another site can send these three without asking
    ("application/x-www-form-urlencoded", 415),
    ("multipart/form-data; boundary=x", 415),
    ("text/plain; application/json", 415),
    ("application/jsonx", 415),
    ("application/json, text/plain", 415),
    ("", 415),
    ("<absent>", 415),
]


@pytest.mark.parametrize(("kind", "status"), CONTENT_TYPES)
def test_requests_that_change_state_must_be_json(kind, status):
    assert request(OPEN, scope_of(headers=[("content-type", kind)])).status == status


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "QUERY", "get", "post"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "<absent>"])
def test_other_methods_are_refused_by_name(method, kind):
    reply = request(OPEN, scope_of(method, headers=[("content-type", kind)]))
    assert reply.status == 405 and reply.header("allow") == "GET, HEAD, OPTIONS, POST"
    assert reply.json["error"]["message"].endswith("use GET, HEAD, OPTIONS, POST")


def test_head_is_get_without_a_body():
    """Load balancers and `wget --spider` ask for the health with HEAD."""
    get, head = (request(OPEN, scope_of(method, "/health")) for method in ("GET", "HEAD"))
    assert head.status == 200 and get.body and not head.body


def test_a_body_with_two_lengths_is_refused():
    """A proxy that reads the other header sees the beginning of another request in the body."""
    reply = request(OPEN, scope_of(headers=[("content-length", "2"), ("transfer-encoding", "chunked")]))
    assert reply.status == 400 and reply.header("connection") == "close"


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip"])
def test_compressed_bodies_are_refused(coding):
    assert request(OPEN, scope_of(headers=[("content-encoding", coding)])).status == 415


SIZES = [
    ([], [b"x" * 100], 200),
    ([], [b"x" * 101], 413),
    ([], [b"x" * 60, b"x" * 41], 413),  # no Content-Length: only counting helps
    ([], [b"x"] * 101, 413),
    ([("content-length", "100")], [b"x" * 101], 413),  # a false Content-Length
    ([("content-length", "101")], [b""], 413),
    ([("content-length", "9" * 30)], [b""], 400),
    ([("content-length", "-1")], [b""], 400),
    ([("content-length", "1e3")], [b""], 400),
    ([("content-length", "\u00b2")], [b""], 400),
]


@pytest.mark.parametrize(("headers", "parts", "status"), SIZES)
def test_large_bodies_are_refused_while_they_arrive(headers, parts, status):
    reply = request(Policy(KeyRing(), body_bytes=100), scope_of(headers=headers), parts)
    assert reply.status == status
    assert (reply.header("connection") == "close") == (status != 200)


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        (scope_of("GET", headers=[("x", "y" * 40_000)]), 431),  # vLLM, CVE-2025-48956
        (scope_of("GET", headers=[(f"x{index}", "y") for index in range(200)]), 431),
        (scope_of("GET", "/" + "a" * 10_000), 414),
        (scope_of("GET", query=b"a" * 10_000), 414),
    ],
)
def test_large_headers_are_refused(scope, status):
    assert request(OPEN, scope).status == status


def test_a_body_that_does_not_arrive_ends_the_request():
    started = time.monotonic()
    reply = request(Policy(KeyRing(), body_seconds=0.05), scope_of(), [])
    assert reply.status == 408 and time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("identifier", "kept"),
    [
        ("abc-DEF_1.2", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a b", False),
        ("a\r\nset-cookie: x=y", False),
        ("<script>", False),
        (b"\xff", False),
        ("\u0663", False),
    ],
)
def test_request_ids_are_checked_before_they_are_returned(identifier, kept):
    reply = request(OPEN, scope_of("GET", headers=[("x-request-id", identifier)]))
    returned = reply.header("x-request-id")
    assert (returned == identifier) == kept
    assert kept or (returned.startswith("req_") and len(returned) == 28)


def test_new_request_ids_differ():
    assert len({request(OPEN, scope_of("GET")).header("x-request-id") for _ in range(20)}) == 20


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "path", ["/a\nb 200", "/a\r\n2026-01-01 forged", "/\x1b[31m", "/\u2028x", "/\u202eabc", "/" + "a" * 4000]
)
def test_a_request_writes_one_line_of_log(path, as_json):
    lines: list[str] = []
    outer = OuterMiddleware(Guard(application, OPEN), lines.append, as_json)
    call(outer, scope_of("GET", path))
    assert len(lines) == 1 and len(lines[0].splitlines()) == 1 and lines[0].isprintable() and len(lines[0]) < 1000
    if as_json:
        assert json.loads(lines[0])["status"] == 200


def test_the_log_contains_no_texts():
    lines: list[str] = []
    headers = [BEARER, ("cookie", "secret-cookie"), ("user-agent", "secret-agent")]
    call(
        OuterMiddleware(Guard(application, CLOSED), lines.append),
        scope_of(headers=headers, query=b"secret-query"),
        b'{"secret-prompt": 1}',
    )
    assert lines and "alice" in lines[0] and "secret" not in lines[0] and KEY not in lines[0]


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-later", True),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-00f067aa0ba902b7-01\nforged", False),
    ],
)
def test_trace_ids_are_logged_if_they_are_valid(value, valid):
    lines: list[str] = []
    call(OuterMiddleware(Guard(application, OPEN), lines.append), scope_of("GET", headers=[("traceparent", value)]))
    assert (TRACE in lines[0]) == valid and "forged" not in lines[0]


@pytest.mark.parametrize("scope", [scope_of("GET"), scope_of("GET", headers=[("host", "x")]), scope_of()])
def test_every_response_has_the_security_headers(scope):
    reply = request(OPEN, scope)
    for name, value in SECURITY_HEADERS:
        assert reply.header(name.decode()) == value.decode()


def test_a_response_may_have_its_own_policy():
    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Security-Policy", b"mine")]})
        await send({"type": "http.response.body"})

    reply = call(OuterMiddleware(Guard(page, OPEN)), scope_of("GET"))
    assert [value for name, value in reply.headers if name.lower() == "content-security-policy"] == ["mine"]


HOSTILE = "Zq9-unlikely-text"


@pytest.mark.parametrize(
    "scope",
    [
        scope_of("GET", headers=[("host", HOSTILE)]),
        scope_of("GET", headers=[("origin", HOSTILE)]),
        scope_of(headers=[("content-type", HOSTILE)]),
        scope_of(headers=[("content-length", HOSTILE)]),
    ],
)
def test_errors_do_not_repeat_the_request(scope):
    reply = request(OPEN, scope)
    assert reply.status >= 400 and HOSTILE not in reply.body.decode() + str(reply.headers)
    assert not any(word in reply.body.decode() for word in ("Traceback", "0x", ".py", "object at"))


def test_errors_have_the_shape_of_the_interface():
    error = request(CLOSED, scope_of(path="/v1/messages")).json
    assert error["type"] == "error" and error["error"]["type"] == "authentication_error" and error["request_id"]
    assert request(CLOSED, scope_of(path="/v1/chat/completions")).json["error"]["type"] == "authentication_error"
    assert request(CLOSED, scope_of("HEAD")).body == b""


def test_websockets_are_refused():
    messages: list[dict] = []

    async def send(message):
        messages.append(message)

    asyncio.run(Guard(application, OPEN)({"type": "websocket", "path": "/", "headers": []}, None, send))
    assert messages == [{"type": "websocket.close", "code": 1008}]


class TestAllowedOrigins:
    policy = Policy(KEYS, origins=frozenset({"https://chat.example"}))

    def call(self, origin, method="POST", **more):
        headers = [("origin", origin), BEARER, *more.items()]
        policy = self.policy

        async def run():
            from puna.server.guard.security import origin_headers

            outer = OuterMiddleware(Guard(application, policy), extra=lambda scope: origin_headers(scope, policy))
            return await call_async(outer, scope_of(method, headers=headers), b"{}")

        return asyncio.run(run())

    def test_an_allowed_origin_may_read_responses_but_sends_no_cookies(self):
        reply = self.call("https://chat.example")
        assert reply.status == 200
        assert reply.header("access-control-allow-origin") == "https://chat.example"
        assert reply.header("vary") == "Origin" and reply.header("access-control-allow-credentials") is None

    def test_others_may_not(self):
        for origin in ("https://evil.example", "https://chat.example.evil", "http://chat.example", "null"):
            reply = self.call(origin)
            assert reply.status == 403 and reply.header("access-control-allow-origin") is None

    def test_a_preflight_needs_no_key(self):
        headers = [("origin", "https://chat.example"), ("access-control-request-method", "POST")]
        reply = request(self.policy, scope_of("OPTIONS", headers=headers))
        assert reply.status == 204 and "authorization" in reply.header("access-control-allow-headers")
        assert request(self.policy, scope_of("OPTIONS", headers=headers[:1])).status == 401


class TestKeys:
    def test_files_and_the_variable_are_joined(self, tmp_path):
        path = tmp_path / "keys"
        path.write_text(f"# comment\n\nalice {KEY}\n{OTHER}\n")
        assert read_keys(path, "third-key, fourth-key") == [
            ("alice", KEY), ("key-2", OTHER), ("key-3", "third-key"), ("key-4", "fourth-key"),
        ]  # fmt: skip
        assert read_keys(None, None) == [] and read_keys(None, " , ") == []

    @pytest.mark.parametrize("text", ["", "# only a comment\n", "a b c\n"])
    def test_files_without_a_key_are_refused(self, tmp_path, text):
        path = tmp_path / "keys"
        path.write_text(text)
        with pytest.raises(ConfigError, match="key"):
            read_keys(path, None)

    @pytest.mark.parametrize(
        "pairs",
        [[("a", "short")], [("a", "x" * 600)], [("a", "sp ace sp ace")], [("a", "caf\u00e9-caf\u00e9")], [("a\n", KEY)],
         [("a", KEY), ("a", OTHER)], [("a", KEY), ("b", KEY)]],
    )  # fmt: skip
    def test_invalid_keys_are_refused_without_being_shown(self, pairs):
        with pytest.raises(ConfigError) as caught:
            KeyRing(pairs)
        assert pairs[0][1] not in str(caught.value)

    def test_several_keys_have_separate_caches(self):
        alice, bob = (KEYS.identify([key.encode()]) for key in (KEY, OTHER))
        assert alice.salt and bob.salt and alice.salt != bob.salt
        assert KEY not in alice.salt
        assert KeyRing([("alice", KEY)]).identify([KEY.encode()]).salt == ""
