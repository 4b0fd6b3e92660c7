"""Streams that are cancelled, closed, forgotten or read slowly leave nothing behind: no page, no request, no memory."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from pathlib import Path
from typing import Any

import pytest

from puna import AsyncLLM
from puna.answer import Answer, Delta
from puna.errors import RequestError
from tests.golden.files import LAYOUTS

PROMPTS = [tuple(range(3 + number, 3 + number + 40 * (number % 5) + 1)) for number in range(20)]


@pytest.fixture(scope="module")
def llm():
    model = AsyncLLM(LAYOUTS["hf"], "native", threads=1, max_batch=8)
    yield model
    model.close()


def resident_bytes() -> int:
    """Returns the memory of this process that is resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


created: weakref.WeakSet[Answer] = weakref.WeakSet()


def options_of(number: int) -> dict[str, Any]:
    """Returns the options of a prompt."""
    return {"max_tokens": 20, "temperature": 0.9, "seed": number, "n": 1 + number % 2, "logprobs": number % 3 or None}


async def one_request(llm: AsyncLLM, choice: random.Random, expected: dict, counts: dict) -> None:
    """Starts answers and ends them in a random way; answers that are complete must equal those of the request alone."""
    number = choice.randrange(len(PROMPTS))
    options = options_of(number)
    kind = choice.choice(["read", "read", "read", "close", "forget", "cancel", "malformed", "unread"])
    counts[kind] = counts.get(kind, 0) + 1
    if kind == "malformed":
        with pytest.raises(RequestError):
            await llm.start_deltas(PROMPTS[number], temperature=-1)
        return
    salt = choice.choice(["", "", "a"])
    priority = choice.randrange(3)
    answers, stream = await llm.start_deltas(PROMPTS[number], salt=salt, priority=priority, **options)
    created.update(answers)

    async def read(limit: int) -> None:
        async for _, delta in stream:
            assert isinstance(delta, Delta)
            limit -= 1
            if limit == 0:
                return

    if kind == "read":
        await read(-1)
        ids = [answer.completion().ids for answer in answers]
        assert ids == expected.setdefault(number, ids)
    elif kind == "close":
        await read(choice.randrange(1, 9))
        stream.close()
    elif kind == "forget":
        await read(choice.randrange(1, 9))
    elif kind == "cancel":
        task = asyncio.create_task(read(-1))
        await asyncio.sleep(choice.random() * 0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def run_requests(llm: AsyncLLM, total: int, concurrent: int, seed: int, expected: dict) -> dict[str, int]:
    """Runs requests, `concurrent` at once; returns how many ended in each way."""
    choice, counts = random.Random(seed), {}
    remaining = iter(range(total))

    async def client() -> None:
        for _ in remaining:
            await one_request(llm, choice, expected, counts)

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(concurrent)))
        await llm.generate([5], max_tokens=1)

    asyncio.run(clients())
    for number, ids in expected.items():  # alone, and with no page of the others
        completion = asyncio.run(llm.generate(PROMPTS[number], salt=f"alone {seed}", **options_of(number)))
        assert [completion.ids, *(other.ids for other in completion.alternatives)] == ids
    return counts


def check_nothing_is_left(llm: AsyncLLM) -> None:
    gc.collect()
    asyncio.run(llm.generate([5], max_tokens=1))  # the messages of deleted streams have been read
    asyncio.run(llm.generate([5], max_tokens=1))
    engine, stepper = llm._engine, llm._runner._stepper
    assert not engine.busy
    assert engine.scheduler._preempted == {} == stepper._jobs
    assert engine.pool.available == engine.pool.pages
    assert engine.pool._references == {}
    numbers = llm.statistics()
    assert (numbers.running, numbers.waiting, numbers.used_pages) == (0, 0, 0)
    gc.collect()
    assert not list(created)


def test_abandoned_streams_leave_nothing(llm):
    expected: dict[int, list] = {}
    counts = run_requests(llm, 150, 24, 1, expected)
    assert len(counts) == 6
    check_nothing_is_left(llm)


@pytest.mark.soak
def test_thousands_of_abandoned_streams_leave_nothing_and_the_memory_is_flat(llm):
    expected: dict[int, list] = {}
    run_requests(llm, 2000, 64, 2, expected)
    check_nothing_is_left(llm)
    before = resident_bytes()
    for seed in range(3, 8):
        counts = run_requests(llm, 4000, 64, seed, expected)
        assert min(counts.values()) > 200
        check_nothing_is_left(llm)
    assert resident_bytes() < 1.05 * before
    assert len(expected) == len(PROMPTS)
