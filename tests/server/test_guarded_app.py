"""The complete application with its queue, keys, timeouts, log and metrics, called without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from puna.server.app import create_app
from puna.server.guard import protect as protect_module
from puna.server.guard.admission import AdmissionSettings
from puna.server.service import Service
from puna.server.settings import ServerSettings
from tests.server.asgi import Connection, Reply, call_async, scope_of

KEYS = (("alice", "first-key-of-the-tests"), ("bob", "second-key-of-the-tests"))
TEXT = "the llama lives in the high grassland and sleeps under the stars of the mountain " * 3
ENDLESS = {"max_tokens": 200, "ignore_eos": True, "stream": True}


class Server:
    """An application and its service."""

    def __init__(self, llm, **settings):
        settings.setdefault("admission", AdmissionSettings())
        self.settings = ServerSettings(name="golden", **settings)
        self.service = Service(llm, self.settings)
        self.app = create_app(self.service, self.settings)

    async def get(self, path, headers=()):
        return await call_async(self.app, scope_of("GET", path, list(headers)))

    async def chat(self, connection=None, headers=(), text="the llama", **fields) -> Reply:
        body = {"model": "golden", "messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
        scope = scope_of("POST", "/v1/chat/completions", list(headers))
        return await call_async(self.app, scope, json.dumps(body | fields).encode(), connection)

    async def metrics(self):
        text = (await self.get("/metrics")).body.decode()
        result = {}
        for sample in (item for family in text_string_to_metric_families(text) for item in family.samples):
            labels = [value for name, value in sorted(sample.labels.items()) if name != "model_name"]
            result[(sample.name.removeprefix("puna:"), *labels)] = sample.value
        return result


def limited(llm, slots=1, **admission):
    server = Server(llm, admission=AdmissionSettings(**admission))
    server.service.admission.slots = server.service.admission.free = slots
    return server


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("the condition did not become true")


@contextlib.asynccontextmanager
async def stalled_stream(server):
    """A stream whose client stopped reading after the first event."""
    connection = Connection()
    connection.reading.clear()
    task = asyncio.ensure_future(server.chat(connection, **ENDLESS))
    await asyncio.wait_for(connection.arrived.wait(), 10)
    yield connection
    connection.gone.set()
    await asyncio.wait_for(task, 10)


def test_metrics_match_the_requests(llm):
    async def main():
        server = Server(llm)
        start = await server.metrics()  # the tests share an engine, which has counted before
        prompt = tokens = cached = 0
        for stream in (False, True, False):
            options = {"include_usage": True} if stream else None
            reply = await server.chat(stream=stream, stream_options=options, ignore_eos=True)
            body = reply.body.decode().strip().split("\n\n")[-2].removeprefix("data: ") if stream else reply.body
            usage = json.loads(body)["usage"]
            prompt, tokens = prompt + usage["prompt_tokens"], tokens + usage["completion_tokens"]
            cached += usage["prompt_tokens_details"]["cached_tokens"]
        assert tokens == 12 and cached > 0
        values = await server.metrics()
        before = {name: value - start.get(name, 0) for name, value in values.items()}
        assert before["prompt_tokens_total",] == before["prefix_cache_queries_total",] == prompt
        assert before["prefix_cache_hits_total",] == cached
        assert before["generation_tokens_total",] == before["request_generation_tokens_sum",] == tokens
        assert before["iteration_tokens_total_sum",] >= prompt - cached + tokens - 3
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                     "request_prefill_time_seconds", "request_decode_time_seconds", "request_prompt_tokens",
                     "request_generation_tokens", "request_params_n", "request_params_max_tokens"):  # fmt: skip
            assert before[f"{name}_count",] == 3, name
        assert before["request_params_n_sum",] == 3 and before["request_params_max_tokens_sum",] == 12
        assert before["inter_token_latency_seconds_count",] == tokens - 3
        assert before["request_success_total", "length"] == 3
        assert before["http_requests_total", "/v1/chat/completions", "200"] == 3
        assert (await server.chat(temperature=9)).status == 400
        assert (await server.get("/nowhere")).status == 404
        assert (await server.chat(n=2)).status == 200
        values = await server.metrics()
        assert values["http_requests_total", "/v1/chat/completions", "400"] == 1
        assert values["http_requests_total", "other", "404"] == 1
        assert values["request_params_n_sum",] == 5 and values["request_generation_tokens_count",] == 5
        assert values["num_requests_running",] == values["num_requests_waiting",] == values["kv_cache_usage_perc",] == 0
        assert values["client_disconnects_total",] == 0

    asyncio.run(main())


def test_a_full_server_refuses_and_a_disconnect_frees_its_place(llm):
    async def main():
        server = limited(llm, queue=1)
        admission = server.service.admission
        async with stalled_stream(server):
            waiting = asyncio.ensure_future(server.chat())
            await until(lambda: admission.waiting)
            values = await server.metrics()
            assert values["num_requests_running",] == values["num_requests_waiting",] == 1
            refused = await server.chat()
            assert refused.status == 429 and refused.json["error"]["code"] == "rate_limit_exceeded"
            assert int(refused.header("retry-after")) >= 1
            assert not waiting.done()
        assert (await asyncio.wait_for(waiting, 10)).status == 200
        assert admission.free == 1 and not admission.running
        await until(lambda: not llm._engine.busy)
        assert (await server.metrics())["client_disconnects_total",] == 1

    asyncio.run(main())


def test_a_client_that_leaves_the_queue_is_never_answered(llm):
    async def main():
        server = limited(llm)
        async with stalled_stream(server):
            connection = Connection()
            task = asyncio.ensure_future(server.chat(connection))
            await until(lambda: server.service.admission.waiting)
            connection.gone.set()
            assert (await asyncio.wait_for(task, 10)).status == 0
            assert not server.service.admission.waiting
        assert not any(name[0] == "request_success_total" for name in await server.metrics())

    asyncio.run(main())


def test_a_request_that_waits_too_long_is_refused(llm):
    async def main():
        server = limited(llm, queue_seconds=0.02)
        async with stalled_stream(server):
            reply = await server.chat()
            assert reply.status == 408 and reply.json["error"]["code"] == "queue_timeout"
            assert reply.header("retry-after")

    asyncio.run(main())


def test_the_time_in_the_queue_is_not_part_of_the_time_limit(llm):
    async def main():
        server = Server(llm, request_seconds=60, admission=AdmissionSettings(queue_seconds=1000))
        admission = server.service.admission
        ticket = await admission.enter("other", size=admission.slots)
        task = asyncio.ensure_future(server.chat())
        await until(lambda: admission.waiting)
        loop = asyncio.get_running_loop()
        clock = loop.time
        loop.time = lambda: clock() + 100  # timers of at most 100 s are due now
        await asyncio.sleep(0.01)
        admission.leave(ticket)
        assert (await asyncio.wait_for(task, 60)).status == 200

    asyncio.run(main())


def test_a_slow_reader_is_dropped_and_its_generation_cancelled(llm):
    async def main():
        server = limited(llm)
        object.__setattr__(server.settings, "slow_reader_seconds", 0.02)
        connection = Connection()
        connection.reading.clear()
        await asyncio.wait_for(server.chat(connection, **ENDLESS), 10)
        assert server.service.admission.free == 1
        await until(lambda: not llm._engine.busy)

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended(llm, stream):
    async def main():
        server = Server(llm, request_seconds=0.0 if not stream else 60.0)
        start = server.service.start

        async def started(generation):
            running = await start(generation)
            object.__setattr__(server.settings, "request_seconds", 0.0)
            return running

        server.service.start = started
        reply = await server.chat(**ENDLESS | {"stream": stream})
        if stream:
            assert reply.status == 200 and b"[DONE]" not in reply.body
            error = json.loads(reply.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        else:
            assert reply.status == 408
            error = reply.json["error"]
        assert error["code"] == "request_timeout" and "--request-seconds" in error["message"]
        await until(lambda: not llm._engine.busy)

    asyncio.run(main())


def test_a_server_that_drains_refuses_new_requests(llm):
    async def main():
        server = Server(llm)
        assert (await server.get("/health/ready")).status == 200
        server.service.drain()
        reply = await server.chat()
        assert reply.status == 503 and reply.header("retry-after")
        assert (await server.get("/health")).status == 200
        ready = await server.get("/health/ready")
        assert ready.status == 503 and ready.header("retry-after")

    asyncio.run(main())


def test_a_server_that_loads_is_alive_but_not_ready(tmp_path):
    async def main():
        server = Server(tmp_path)
        assert (await server.get("/health")).status == 200
        for reply in (await server.get("/health/ready"), await server.chat(), await server.get("/metrics")):
            assert reply.status == 503 and reply.header("retry-after")

    asyncio.run(main())


def test_callers_do_not_share_cached_prefixes(llm):
    async def main():
        server = Server(llm, keys=KEYS)

        async def cached(key, **fields):
            reply = await server.chat(headers=[("x-api-key", key)], text=TEXT, **fields)
            return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]

        alice, bob = (key for _, key in KEYS)
        assert await cached(alice) == 0
        assert await cached(alice) > 0
        assert await cached(bob) == 0
        assert await cached(bob) > 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/score", {"text_1": "one " + TEXT, "text_2": " and"}),
        ("/v1/embeddings", {"input": "two " + TEXT}),
        (
            "/v1/decisions",
            {"input": "three " + TEXT, "questions": [{"type": "predicate", "instructions": "It is true."}]},
        ),
    ],
)
def test_callers_do_not_share_prefixes_of_texts_that_are_only_read(llm, monkeypatch, path, fields):
    computed, forward = [], llm._backend.forward

    def counted(chunks, *rest):
        computed.append(sum(len(chunk.tokens) for chunk in chunks))
        return forward(chunks, *rest)

    monkeypatch.setattr(llm._backend, "forward", counted)

    async def main():
        server = Server(llm, keys=KEYS)
        counts = []
        for key in (KEYS[0][1], KEYS[1][1], KEYS[0][1]):
            computed.clear()
            body = json.dumps({"model": "golden", **fields}).encode()
            reply = await call_async(server.app, scope_of("POST", path, [("x-api-key", key)]), body)
            assert reply.status == 200, reply.body
            counts.append(sum(computed))
        assert counts[0] == counts[1] > counts[2]

    asyncio.run(main())


def test_every_route_needs_a_key(llm):
    async def main():
        server = Server(llm, keys=KEYS)
        document = server.app.openapi()
        public = {"/health", "/health/ready", "/ping"}
        routes = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
        assert ("POST", "/v1/chat/completions") in routes and ("GET", "/metrics") in routes
        for method, path in [*routes, ("GET", "/openapi.json")]:
            reply = await call_async(server.app, scope_of(method, path), b"{}")
            assert (reply.status != 401) == (path in public and method == "GET"), path

    asyncio.run(main())


@pytest.mark.parametrize("log_format", ["lines", "json"])
def test_the_log_has_the_numbers_of_a_request_but_no_text(llm, monkeypatch, log_format):
    lines = []
    monkeypatch.setattr(protect_module, "write_line", lines.append)

    async def main():
        server = Server(llm, keys=KEYS, access_log=log_format, replica="r1")
        headers = [("authorization", f"Bearer {KEYS[0][1]}"), ("x-request-id", "abc")]
        reply = await server.chat(headers=headers, text="secret")
        assert reply.header("x-puna-replica") == "r1" and reply.header("x-request-id") == "abc"

    asyncio.run(main())
    assert len(lines) == 1 and "secret" not in lines[0] and KEYS[0][1] not in lines[0]
    for fact in ("abc", "alice", "completion_tokens", "queue_seconds", "first_token_seconds", "/v1/chat/completions"):
        assert fact in lines[0]
    assert log_format == "lines" or json.loads(lines[0])["completion_tokens"] == 4


def test_an_unexpected_error_shows_only_the_request_id(llm, monkeypatch):
    async def main():
        server = Server(llm)
        monkeypatch.setattr(Service, "names", property(lambda self: 1 / 0))
        with contextlib.suppress(ZeroDivisionError):  # uvicorn logs it
            reply = Connection()
            await call_async(server.app, scope_of("GET", "/v1/models", [("x-request-id", "abc")]), b"", reply)
        reply = reply.reply
        assert reply.status == 500 and "abc" in reply.body.decode() and reply.header("x-content-type-options")
        assert not any(word in reply.body.decode() for word in ("ZeroDivision", "Traceback", ".py", "division"))

    asyncio.run(main())
