"""The numbers of an engine, and the reasons why a prefix was not in the cache."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from puna.engine import DiskCache, Engine, PrefixMiss, Request
from tests.engine.recorder import VOCAB, Recorder, drain, expected_answer

PROMPT = tuple(np.random.default_rng(0).integers(0, VOCAB, 150).tolist())


def test_statistics_equal_the_sums_of_the_events():
    engine = Engine(Recorder(pages=5, context=256), slots=3)
    assert engine.statistics().page_use == 0
    random = np.random.default_rng(1)
    for number in range(12):
        length = int(random.integers(1, 150))
        engine.submit(Request(PROMPT[:length] if number % 2 else PROMPT[::-1][:length], int(random.integers(1, 40))))
    assert (engine.statistics().waiting, engine.statistics().waiting_adapters) == (12, {"": 12})
    events, used = [], []
    while engine.busy:
        events += engine.step()
        numbers = engine.statistics()
        used.append(numbers.page_use)
        assert numbers.running == len(engine.scheduler.running) == sum(numbers.running_adapters.values())
        assert numbers.waiting == len(engine.scheduler.waiting)
    assert 0.5 < max(used) <= 1
    numbers = engine.statistics()
    assert (numbers.running, numbers.waiting, numbers.used_pages) == (0, 0, 0)
    assert numbers.cached_tokens == sum(event.cached_tokens for event in events) > 0
    assert numbers.prompt_tokens == numbers.cached_tokens + sum(event.prompt_tokens for event in events)
    assert numbers.generated_tokens == sum(event.token is not None for event in events)
    assert numbers.preemptions == engine.scheduler.preemptions > 0
    batches = Counter(sum(batch) for batch in engine.backend.batches)
    assert numbers.steps == batches
    assert (numbers.pages, numbers.page_tokens, numbers.slots) == (5, 64, 3)


def test_statistics_of_the_disk(tmp_path):
    totals = []
    for _ in range(2):
        backend = Recorder(context=256)
        disk = DiskCache(tmp_path / "pages", 100 * backend.page_bytes, bytes(32), backend)
        engine = Engine(backend, disk=disk)
        for _ in range(3):  # the time to read a page is measured first
            engine.scheduler.times.record(0, 64, 100.0)
        engine.submit(Request(PROMPT, 5))
        drain(engine)
        engine.close()
        totals.append(engine.statistics())
    assert (totals[0].disk_hits, totals[0].disk_rejects) == (0, 0)
    files = [path.stat().st_size for path in (tmp_path / "pages").glob("*.page")]
    assert totals[0].disk_bytes == sum(files) > 0
    assert totals[1].disk_hits == len(files) == 2
    for path in (tmp_path / "pages").glob("*.page"):
        path.write_bytes(path.read_bytes()[:-1])
    backend = Recorder(context=256)
    disk = DiskCache(tmp_path / "pages", 100 * backend.page_bytes, bytes(32), backend)
    engine = Engine(backend, disk=disk)
    engine.scheduler.times.record(0, 64, 100.0)
    engine.submit(Request(PROMPT, 5))
    drain(engine)
    assert engine.statistics().disk_rejects >= 1
    engine.close()


def test_statistics_may_be_read_by_other_threads_during_steps():
    engine = Engine(Recorder(pages=64, context=256), slots=8)
    errors: list[Exception] = []
    ended = threading.Event()

    def read():
        last = 0
        try:
            while not ended.is_set():
                numbers = engine.statistics()
                assert numbers.prompt_tokens >= last
                last = numbers.prompt_tokens
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        engine.submit(Request((number % VOCAB, 2, 3), 5))
        engine.step()
    drain(engine)
    ended.set()
    for thread in threads:
        thread.join()
    assert errors == []


def explain(engine: Engine, prompt: tuple[int, ...], **options) -> PrefixMiss | None:
    """Runs a request; returns why the cache did not have all of its prompt."""
    engine.submit(Request(prompt, 4, explains_prefix=True, **options))
    events = drain(engine)
    misses = [event.prefix_miss for event in events if event.prefix_miss is not None]
    assert len(misses) <= 1
    return misses[0] if misses else None


def changed(prompt: tuple[int, ...], position: int) -> tuple[int, ...]:
    return (*prompt[:position], (prompt[position] + 1) % VOCAB, *prompt[position + 1 :])


def test_the_reason_of_a_missing_prefix():
    engine = Engine(Recorder(context=256))
    assert explain(engine, PROMPT) == PrefixMiss("empty", 0, PROMPT[0])
    assert explain(engine, PROMPT) is None  # all but the last token were cached
    for position in (130, 64, 9, 1):
        prompt = changed(PROMPT, position)
        assert explain(engine, prompt) == PrefixMiss("input", position, prompt[position], PROMPT[position])
    assert explain(engine, PROMPT, salt="other") == PrefixMiss("salt", 0, PROMPT[0])
    turn = (*PROMPT, *expected_answer(PROMPT, 4)[:3], 7, 8, 9)  # the last token of an answer is never computed
    assert explain(engine, turn) == PrefixMiss("end", len(PROMPT) + 3, 7)
    assert explain(engine, ((PROMPT[0] + 3) % VOCAB, 5)) == PrefixMiss("empty", 0, (PROMPT[0] + 3) % VOCAB)


def test_an_evicted_prefix_is_reported():
    engine = Engine(Recorder(pages=4, context=256))
    assert explain(engine, PROMPT).reason == "empty"
    other = tuple((token + 1) % VOCAB for token in PROMPT)
    assert explain(engine, other) is not None  # takes the pages of the first prompt
    miss = explain(engine, PROMPT)
    assert miss is not None
    assert (miss.reason, miss.position) == ("evicted", engine.counters.cached_tokens)


def test_no_reason_is_computed_unless_it_is_requested(monkeypatch):
    engine = Engine(Recorder(context=256))
    monkeypatch.setattr(engine.scheduler.recent, "explain", lambda *arguments: pytest.fail("not requested"))
    engine.submit(Request(PROMPT, 4))
    assert all(event.prefix_miss is None for event in drain(engine))


def test_only_the_latest_sequences_are_kept(monkeypatch):
    monkeypatch.setattr("puna.engine.prefixes.MAX_TOKENS", 300)
    engine = Engine(Recorder(context=256))
    for number in range(100):
        engine.submit(Request((number % VOCAB, 2), 4))
    drain(engine)
    recent = engine.scheduler.recent
    assert len(recent._sequences) <= 64
    assert recent._tokens == sum(len(sequence.tokens) for sequence in recent._sequences) <= 300
