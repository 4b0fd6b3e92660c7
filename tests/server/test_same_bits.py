"""The same request gives the same tokens and log-probabilities over HTTP, whatever else the server does.

Each case serves the same requests in another way and compares all token ids and log-probabilities, bit by bit, with
those of a server that answers one request at a time and has no prefix cache. Counters prove that each case did what it
is named after: that prefixes were found, that guesses were accepted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.golden.files import HELD_OUT, LAYOUTS, TEXT
from tests.helpers.adapters import write_random_adapter
from tests.server.live import live_server, tool_checkpoint

httpx = pytest.importorskip("httpx2")

CLIENTS = 16


pytestmark = pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.soak)], scope="module")


def bodies(count: int) -> list[dict[str, Any]]:
    """Returns requests: prompts of 5 to 1,500 characters, most of which begin like others; greedy and sampled."""
    rng = random.Random(7)
    text, other = TEXT.read_text(), HELD_OUT.read_text()
    prefixes = [text[start : start + length] for start, length in ((0, 700), (400, 300), (1000, 1400), (90, 0))]
    result = []
    for index in range(count):
        start = rng.randrange(len(other) - 200)
        body = {
            "model": "golden", "prompt": prefixes[index % 4] + other[start : start + rng.randrange(5, 100)],
            "max_tokens": rng.randrange(1, 24), "logprobs": rng.randrange(4), "return_token_ids": True,
            "prompt_logprobs": None, "seed": rng.randrange(2**40), "temperature": index % 3 / 2,
        }  # fmt: skip
        if index % 5 == 0:
            body |= {"top_p": 0.9, "top_k": 40, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
        if index % 7 == 0:
            body["stop"] = [rng.choice("aeiou")]
        if index % 11 == 0:
            body["structured_outputs"] = {"regex": "[a-z ]{3,40}"}
        result.append(body)
    return result


def ask(client: Any, url: str, body: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the answer (ids, text, log-probabilities, reason) and the usage."""
    response = client.post(f"{url}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    document = response.json()
    choice = document["choices"][0]
    return (choice["token_ids"], choice["text"], choice["logprobs"], choice["finish_reason"]), document["usage"]


def cached(usage: dict[str, Any]) -> int:
    return usage["prompt_tokens_details"]["cached_tokens"]


def serially(url: str, requests: list[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    with httpx.Client(timeout=60) as client:
        return [ask(client, url, body) for body in requests]


def together(url: str, requests: list[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda body: ask(client, url, body), requests))


def answers(results: list[tuple[Any, dict[str, Any]]]) -> list[Any]:
    return [answer for answer, _ in results]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tool_checkpoint(tmp_path_factory.mktemp("bits"))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, Path]:
    from puna import LlamaConfig

    config, folder = LlamaConfig.from_pretrained(LAYOUTS["hf"]), tmp_path_factory.mktemp("adapters")
    return {kind: write_random_adapter(folder / kind, config, kind) for kind in ("lora", "prompt", "long_prefix")}


def serving(checkpoint: Path, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    from contextlib import contextmanager

    from puna import AsyncLLM

    @contextmanager
    def serve() -> Iterator[str]:
        model = AsyncLLM(checkpoint, "native", **options)
        try:
            with live_server(model, **(settings or {})) as url:
                yield url
        finally:
            model.close()

    return serve()


@pytest.fixture(scope="module")
def expected(checkpoint, count) -> list[Any]:
    """The answers of a server without a prefix cache, one at a time."""
    with serving(checkpoint, prefix_cache=False, max_batch=1) as url:
        results = serially(url, bodies(count))
    assert all(cached(usage) == 0 for _, usage in results)
    return answers(results)


@pytest.fixture(scope="module")
def url(checkpoint, adapters) -> Iterator[str]:
    """A server with a prefix cache and adapters."""
    with serving(checkpoint, {"adapters": adapters}, adapters=adapters) as address:
        yield address


def test_cold_then_warm(url, expected, count):
    cold = serially(url, bodies(count))
    warm = serially(url, bodies(count))
    assert answers(cold) == expected
    assert answers(warm) == expected
    long = [usage for _, usage in warm if usage["prompt_tokens"] > 64]
    assert long and all(cached(usage) >= 64 for usage in long)


def test_batched_and_chunked(url, expected, count):
    """All requests at once, with a salt of their own: no prefix is cached at first. Prompts are read in parts."""
    requests = [body | {"cache_salt": f"batch {index % 2}"} for index, body in enumerate(bodies(count))]
    assert answers(together(url, requests)) == expected


def test_streamed(url, expected, count):
    import json

    with httpx.Client(timeout=60) as client:
        for body, (ids, text, _, reason) in zip(bodies(count)[:40], expected, strict=False):
            lines = client.post(f"{url}/v1/completions", json=body | {"stream": True}).text.split("\n\n")
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            choices = [choice for chunk in chunks for choice in chunk["choices"]]
            assert "".join(choice["text"] for choice in choices) == text
            assert [i for choice in choices for i in choice.get("token_ids") or []] == ids
            assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [reason]


def test_with_other_adapters_in_the_batch(url, adapters, expected, count):
    requests = [body | {"cache_salt": "adapters"} for body in bodies(count)]
    names = list(adapters)
    mixed = []
    for index, body in enumerate(requests):
        mixed += [body, body | {"model": names[index % len(names)]}]
    results = together(url, mixed)
    assert answers(results)[::2] == expected
    changed = sum(a != b for a, b in zip(answers(results)[1::2], expected, strict=True))
    assert changed > count // 2, "the adapters had no effect"
    alone = serially(url, mixed[1::2])
    assert answers(alone) == answers(results)[1::2]


def test_with_predictions(url, expected, count):
    """Over the chat interface: the predicted answer, and another one."""
    with httpx.Client(timeout=60) as client:
        accepted = rejected = 0
        for body in bodies(count)[: max(8, count // 10)]:
            chat = {
                "model": "golden", "messages": [{"role": "user", "content": body["prompt"][-60:]}], "temperature": 0,
                "max_tokens": 24, "logprobs": True, "return_token_ids": True,
            }  # fmt: skip
            plain = _choice(client, url, chat)[0]
            text = plain["message"]["content"]
            for content in (text, text[:10] + "zzz" + text[10:], "nothing of this is in the answer"):
                choice, usage = _choice(client, url, chat | {"prediction": {"type": "content", "content": content}})
                assert choice == plain
                details = usage["completion_tokens_details"]
                accepted += details["accepted_prediction_tokens"]
                rejected += details["rejected_prediction_tokens"]
    assert accepted > 0
    assert rejected > 0


def _choice(client: Any, url: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    response = client.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    document = response.json()
    return document["choices"][0], document["usage"]


def test_after_a_restart_from_disk(checkpoint, expected, count, tmp_path):
    for restarted in (False, True):
        with serving(checkpoint, prefix_cache_dir=tmp_path / "prefixes") as address:
            results = together(address, bodies(count))
        assert answers(results) == expected
        if restarted:
            long = [usage for _, usage in results if usage["prompt_tokens"] > 128]
            assert sum(cached(usage) > 0 for usage in long) > 0.9 * len(long) > 0
