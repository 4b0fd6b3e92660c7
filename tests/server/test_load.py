"""Many clients at once: answers equal those of single requests, clients that leave cost nothing, memory stays flat."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.golden.files import HELD_OUT, TEXT
from tests.server.live import live_server, tool_checkpoint

httpx = pytest.importorskip("httpx2")
psutil = pytest.importorskip("psutil")

CONCURRENT = 64
SOLO = 60
"""Number of different requests; each is compared with its answer when the server did nothing else."""

MALFORMED = (
    ("/v1/chat/completions", b'{"model": "golden", "messages": [{"role": "user", "content": "a"}'),
    ("/v1/chat/completions", b'{"model": "golden", "messages": [], "max_tokens": 3}'),
    ("/v1/completions", b'{"model": "golden", "prompt": [1, 2, 99999], "max_tokens": 3}'),
    ("/v1/completions", b'{"model": "golden", "prompt": "a", "temperature": NaN}'),
    ("/v1/messages", b'{"model": "golden", "messages": [{"role": "user", "content": "a"}]}'),
    ("/v1/responses", b'{"model": "golden", "input": 7}'),
    ("/v1/embeddings", b'{"model": "golden", "input": {}}'),
    ("/v1/completions", b'{"model": "nobody", "prompt": "a"}'),
)


def _bodies() -> list[tuple[str, dict[str, Any]]]:
    rng = random.Random(3)
    text, other = TEXT.read_text(), HELD_OUT.read_text()
    result: list[tuple[str, dict[str, Any]]] = []
    for index in range(SOLO):
        start = rng.randrange(len(other) - 300)
        prompt = text[: (0, 300, 900)[index % 3]] + other[start : start + rng.randrange(3, 200)]
        options = {"model": "golden", "temperature": index % 2, "max_tokens": rng.randrange(1, 40)}
        messages = [{"role": "user", "content": prompt}]
        kind = index % 5
        if kind == 0:
            body = options | {"prompt": prompt, "logprobs": 2, "seed": index, "n": 1 + index % 2}
            result.append(("/v1/completions", body))
        elif kind == 1:
            result.append(("/v1/chat/completions", options | {"messages": messages, "seed": index, "logprobs": True}))
        elif kind == 2:
            result.append(("/v1/messages", options | {"messages": messages, "temperature": 0}))
        elif kind == 3:
            result.append(("/v1/embeddings", {"model": "golden", "input": [prompt, "llama"]}))
        else:
            body = options | {"messages": messages, "seed": 1, "structured_outputs": {"regex": "[a-z]{2,9}"}}
            result.append(("/v1/chat/completions", body))
    return result


def _answer(document: Any) -> Any:
    """Returns the parts of a response that do not depend on the time or on the state of the cache."""
    if isinstance(document, dict):
        skipped = {"id", "created", "usage", "timings"}
        return {name: _answer(value) for name, value in document.items() if name not in skipped}
    return [_answer(item) for item in document] if isinstance(document, list) else document


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Any]]:
    from puna import AsyncLLM

    model = AsyncLLM(tool_checkpoint(tmp_path_factory.mktemp("load")), "native")
    with live_server(model) as url:
        yield url, model
    model.close()


async def _post(client: Any, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return _answer(response.json())


async def _leave(client: Any, path: str, body: dict[str, Any], events: int) -> None:
    """Starts a stream, and closes the connection after some events."""
    if path == "/v1/embeddings":
        return
    async with client.stream("POST", path, json=body | {"stream": True, "max_tokens": 200}) as response:
        assert response.status_code == 200
        async for _ in response.aiter_lines():
            events -= 1
            if events <= 0:
                return


async def _fail(client: Any, path: str, content: bytes) -> None:
    response = await client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404), (response.status_code, response.text)
    assert json.loads(response.text)["error"]["message"]


async def _run(url: str, count: int) -> list[int]:
    """Sends the requests; returns the resident memory of the process, in bytes, ten times."""
    limits = httpx.Limits(max_connections=CONCURRENT, max_keepalive_connections=CONCURRENT)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        bodies = _bodies()
        expected = [await _post(client, path, body) for path, body in bodies]
        rng, memory, done = random.Random(5), [], 0
        queue = iter(range(count))

        async def work() -> None:
            nonlocal done
            for _ in queue:
                index, chance, events = rng.randrange(SOLO), rng.random(), rng.randrange(1, 12)
                path, body = bodies[index]
                if chance < 1 / 3:
                    await _leave(client, path, body, events)
                elif chance < 1 / 3 + 1 / 10:
                    await _fail(client, *MALFORMED[index % len(MALFORMED)])
                else:
                    assert await _post(client, path, body) == expected[index], (path, body)
                done += 1
                if done % max(1, count // 10) == 0:
                    memory.append(psutil.Process().memory_info().rss)

        await asyncio.gather(*(work() for _ in range(CONCURRENT)))
    return memory


@pytest.mark.parametrize("count", [192, pytest.param(10_000, marks=pytest.mark.soak)])
def test_mixed_requests_at_once(server, count):
    url, model = server
    memory = asyncio.run(_run(url, count))
    if count >= 10_000:  # the first tenth fills caches
        assert max(memory[1:]) <= 1.05 * memory[1], memory
    statistics = _idle(model)
    assert (statistics.running, statistics.waiting) == (0, 0)
    pool = model._engine.pool
    assert pool.available == pool.pages  # pages of the prefix cache are available; none is used by a request


def _idle(model: Any) -> Any:
    """Returns the statistics once the requests of the clients that left have ended."""
    import time

    for _ in range(3000):
        statistics = model._engine.statistics()
        if not (statistics.running or statistics.waiting):
            break
        time.sleep(0.01)
    return statistics
