"""Pages of the cache: shared prefixes, eviction, preemption, failed steps."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from puna.backend import Outputs
from puna.engine import Engine, Request, Sampling
from puna.engine.pages import PagePool, PageTable
from puna.engine.sampling import Sampler
from puna.errors import BackendError
from tests.engine.recorder import VOCAB, Recorder, drain, expected_answer, next_token, tokens_of


def prompt_of(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, count).tolist())


def with_nan(outputs: Outputs) -> Outputs:
    return replace(outputs, logits=outputs.logits * np.float32(np.nan))


def new_engine(pages: int = 100, slots: int = 4, **options: int) -> Engine:
    return Engine(Recorder(pages, context=1024), slots, **options)


def cached_tokens(events: list, request_id: int) -> int:
    return sum(event.cached_tokens for event in events if event.request_id == request_id)


def computed_tokens(engine: Engine) -> int:
    """Returns the number of tokens that the backend has computed."""
    return sum(map(sum, engine.backend.batches))


def test_a_request_reads_only_what_follows_the_shared_prefix():
    engine = new_engine()
    prefix = prompt_of(200)
    engine.submit(Request(prefix, 3))
    drain(engine)
    engine.backend.batches.clear()
    longer, shorter = (*prefix, 4, 5), (*prefix[:150], 7)
    first, second = engine.submit(Request(longer, 3)), engine.submit(Request(shorter, 3))
    events = drain(engine)
    assert tokens_of(events, first) == expected_answer(longer, 3)
    assert tokens_of(events, second) == expected_answer(shorter, 3)
    assert (cached_tokens(events, first), cached_tokens(events, second)) == (200, 150)
    assert engine.backend.batches[0] == [2, 1]
    assert (engine.pool.hits, engine.pool.copies) == (3 + 2, 2)


def test_the_generated_tokens_of_an_earlier_request_are_shared_too():
    engine = new_engine()
    prompt = prompt_of(50)
    engine.submit(Request(prompt, 100))
    answer = tokens_of(drain(engine), 1)
    turn = (*prompt, *answer, 3, 9)
    events = [engine.submit(Request(turn, 4)), *drain(engine)][1:]
    assert cached_tokens(events, 2) == 149  # the last token of the answer was not computed
    assert tokens_of(events, 2) == expected_answer(turn, 4)


def test_one_token_of_a_repeated_prompt_is_computed():
    for length, reused in [(8, 0), (9, 8), (64, 63), (65, 64), (72, 64), (73, 72), (128, 127), (129, 128)]:
        engine = new_engine()
        engine.submit(Request(prompt_of(length), 0))
        drain(engine)
        engine.submit(Request(prompt_of(length), 2))
        events = drain(engine)
        assert cached_tokens(events, 2) == reused
        assert tokens_of(events, 2) == expected_answer(prompt_of(length), 2)


def test_a_page_is_shared_only_after_all_its_tokens_were_computed():
    """The last token of an answer is not computed."""
    engine = new_engine()
    prompt = prompt_of(60)
    engine.submit(Request(prompt, 4))
    answer = tokens_of(drain(engine), 1)
    assert (len(prompt) + len(answer), engine.pool.cached) == (64, 1)
    engine.submit(Request((*prompt, *answer, 3), 4))
    events = drain(engine)
    assert (cached_tokens(events, 2), engine.pool.hits, engine.pool.copies) == (63, 0, 1)
    assert tokens_of(events, 2) == expected_answer((*prompt, *answer, 3), 4)


def test_prompt_logits_cover_a_prompt_that_is_cached():
    engine = new_engine()
    prompt = prompt_of(200)
    for number in (1, 2):
        engine.submit(Request(prompt, 0, prompt_logits=True))
        events = drain(engine)
        assert cached_tokens(events, number) == 0
        logits = np.concatenate([event.logits for event in events])
        assert logits.argmax(-1).tolist() == [next_token(list(prompt[: n + 1])) for n in range(200)]


@pytest.mark.parametrize(
    ("salt", "prefix_cache", "hits", "cached"), [("", True, 3, 4), ("x", True, 0, 8), ("", False, 0, 0)]
)
def test_pages_are_shared_only_if_salts_are_equal_and_sharing_is_enabled(salt, prefix_cache, hits, cached):
    engine = new_engine(prefix_cache=prefix_cache)
    engine.submit(Request(prompt_of(210), 2))
    drain(engine)
    engine.submit(Request(prompt_of(210), 2, salt=salt))
    drain(engine)
    assert (engine.pool.hits, engine.pool.copies, engine.pool.cached) == (hits, hits > 0, cached)


def test_equal_prompts_that_arrive_together_are_read_once():
    engine = new_engine(slots=8, chunk=50)
    prompt = prompt_of(300)
    ids = [engine.submit(Request(prompt, 5, Sampling(temperature=1.0, seed=n))) for n in range(8)]
    events = drain(engine)
    alone = [new_engine() for _ in ids]
    for number, (engine_alone, request_id) in enumerate(zip(alone, ids, strict=True)):
        engine_alone.submit(Request(prompt, 5, Sampling(temperature=1.0, seed=number)))
        assert tokens_of(events, request_id) == tokens_of(drain(engine_alone), 1)
    assert [cached_tokens(events, request_id) for request_id in ids] == [0] + [299] * 7
    assert computed_tokens(engine) == 300 + 7 * 1 + 8 * 4


def test_prompts_that_differ_after_a_common_page_wait_only_for_that_page():
    engine = new_engine(slots=2, chunk=512)
    common = prompt_of(64)
    first, second = (*common, *prompt_of(60, 1)), (*common, *prompt_of(60, 2))
    engine.submit(Request(first, 1))
    engine.submit(Request(second, 2))
    events = drain(engine)
    assert engine.backend.batches[:2] == [[124], [60]]
    assert [tokens_of(events, n) for n in (1, 2)] == [expected_answer(first, 1), expected_answer(second, 2)]


@pytest.mark.parametrize("common", [20, 80])
def test_prompts_that_arrive_together_are_read_once_after_a_part_of_a_page_was_copied(common):
    """An earlier prompt has the same first tokens: a template's header, for example."""
    engine = new_engine(slots=8, chunk=50)
    prompt = prompt_of(300)
    engine.submit(Request((*prompt[:common], (prompt[common] + 1) % VOCAB), 1))
    drain(engine)
    engine.backend.batches.clear()
    ids = [engine.submit(Request(prompt, 5, Sampling(temperature=1.0, seed=n))) for n in range(8)]
    events = drain(engine)
    alone = new_engine()
    for number, request_id in enumerate(ids):
        own = alone.submit(Request(prompt, 5, Sampling(temperature=1.0, seed=number)))
        assert tokens_of(events, request_id) == tokens_of(drain(alone), own)
    assert computed_tokens(engine) == (300 - common) + 7 * 1 + 8 * 4


def test_a_copied_part_of_a_page_is_kept_if_only_shorter_ones_remain():
    """A request has copied 30 tokens when the page that they came from is evicted."""
    engine = new_engine(slots=2)
    prompt = prompt_of(100)
    pool = engine.pool
    table, other = PageTable(pool, ""), PageTable(pool, "")
    for tokens, owner in ((prompt[:12], table), (prompt[:30], other)):
        owner.reserve(len(tokens))
        owner.register_part(tokens, len(tokens))
    reader = PageTable(pool, "")
    assert reader.share(prompt, 64) == 30
    other.unregister()
    assert reader.share(prompt, 64, 30) == 0
    assert reader.share(prompt, 64) == 12


def test_a_page_is_copied_up_to_the_first_token_that_differs():
    engine = new_engine()
    prompt = prompt_of(100)
    engine.submit(Request(prompt, 1))
    drain(engine)
    for number, (common, reused) in enumerate([(30, 30), (8, 8), (7, 0), (70, 64), (80, 80)], 2):
        other = (*prompt[:common], (prompt[common] + number) % VOCAB, *prompt_of(30, number))
        engine.submit(Request(other, 3))
        events = drain(engine)
        assert cached_tokens(events, number) == reused
        assert tokens_of(events, number) == expected_answer(other, 3)
    assert engine.pool.copies == 3


def test_a_page_is_copied_while_its_owner_fills_it():
    engine = new_engine()
    prompt = prompt_of(40)
    engine.submit(Request(prompt, 100, Sampling(temperature=1.0, seed=1)))
    engine.step()
    engine.submit(Request(prompt, 100, Sampling(temperature=1.0, seed=2)))
    events = drain(engine)
    assert (engine.backend.batches[1:3], cached_tokens(events, 2)) == ([[1], [1, 1]], 39)
    alone = new_engine()
    alone.submit(Request(prompt, 100, Sampling(temperature=1.0, seed=2)))
    assert tokens_of(events, 2) == tokens_of(drain(alone), 1)


def test_pages_are_copied_without_free_pages_beyond_the_limit():
    """The page to be copied may be the only one that could be evicted for the copy; then the tokens are computed."""
    engine = new_engine(pages=2, slots=2)
    engine.submit(Request(prompt_of(40, 1), 1))
    drain(engine)
    engine.submit(Request(prompt_of(20, 2), 40))
    engine.step()
    engine.submit(Request(prompt_of(40, 1), 5))
    events = drain(engine)
    assert tokens_of(events, 3) == expected_answer(prompt_of(40, 1), 5)
    assert (engine.pool.copies, engine.pool.available) == (0, 2)


def test_a_page_that_cannot_be_copied_is_computed(monkeypatch):
    engine = new_engine()
    engine.submit(Request(prompt_of(100), 1))
    drain(engine)

    def fail(pages, data):
        raise BackendError("no memory")

    monkeypatch.setattr(engine.backend, "write_pages", fail)
    engine.submit(Request(prompt_of(100), 3))
    events = drain(engine)
    assert (cached_tokens(events, 2), engine.pool.copies) == (64, 0)
    assert tokens_of(events, 2) == expected_answer(prompt_of(100), 3)


def test_pages_of_a_request_that_failed_are_not_shared(monkeypatch):
    engine = new_engine()
    forward = engine.backend.forward
    monkeypatch.setattr(engine.backend, "forward", lambda batch: with_nan(forward(batch)))
    engine.submit(Request(prompt_of(200), 3))
    events = drain(engine)
    assert "not finite" in str(events[-1].error)
    assert (engine.pool.cached, engine.pool.available) == (0, engine.pool.pages)
    monkeypatch.undo()
    engine.submit(Request(prompt_of(200), 3))
    events = drain(engine)
    assert (cached_tokens(events, 2), tokens_of(events, 2)) == (0, expected_answer(prompt_of(200), 3))


def test_other_requests_continue_in_pages_of_a_request_that_failed():
    engine = new_engine()
    prompt = prompt_of(130)
    engine.submit(Request(prompt, 300))
    engine.step()
    engine.submit(Request(prompt, 300))
    events = engine.step()
    engine.scheduler.finish(1, valid=False)
    assert engine.pool.find(("", prompt[:64])) is None
    assert tokens_of(events + drain(engine), 2) == expected_answer(prompt, 300)
    assert engine.pool.available == engine.pool.pages


def test_a_waiting_request_is_matched_again_only_after_pages_have_changed(monkeypatch):
    engine = new_engine(pages=2, slots=2)
    engine.submit(Request(prompt_of(70, 1), 40))
    engine.step()
    engine.submit(Request(prompt_of(70, 2), 40))
    matches = []
    match = engine.pool.match
    monkeypatch.setattr(engine.pool, "match", lambda *arguments: matches.append(1) or match(*arguments))
    events = drain(engine)
    assert tokens_of(events, 2) == expected_answer(prompt_of(70, 2), 40)
    assert len(matches) == 2  # when it arrived, and when the first request had ended


def test_requests_reserve_no_pages_for_their_answers():
    engine = new_engine(pages=6, slots=3)
    for seed in range(3):
        engine.submit(Request(prompt_of(10, seed), 300))
    events = engine.step()
    assert engine.backend.batches == [[10, 10, 10]]
    assert engine.pool.available == 3
    events += drain(engine)
    for seed in range(3):
        assert tokens_of(events, seed + 1) == expected_answer(prompt_of(10, seed), 300)
    assert engine.scheduler.preemptions > 0
    assert engine.pool.available == 6


def test_a_preempted_request_continues_with_the_same_random_numbers():
    requests = [
        Request(prompt_of(40 + 30 * n, n), 150, Sampling(temperature=1.5, repetition_penalty=1.2, seed=n))
        for n in range(4)
    ]
    expected = []
    for request in requests:
        engine = new_engine()
        engine.submit(request)
        expected.append(tokens_of(drain(engine), 1))
    for prefix_cache in (True, False):
        engine = new_engine(pages=6, chunk=16, prefix_cache=prefix_cache)
        ids = [engine.submit(request) for request in requests]
        events = drain(engine)
        assert [tokens_of(events, request_id) for request_id in ids] == expected
        for request_id, request in zip(ids, requests, strict=True):
            read = sum(event.prompt_tokens for event in events if event.request_id == request_id)
            assert read + cached_tokens(events, request_id) == len(request.prompt_ids)
        assert engine.scheduler.preemptions > 0
        assert engine.pool.available == 6


def test_a_preempted_request_returns_each_row_of_prompt_logits_once():
    engine = new_engine(pages=7, slots=2, chunk=32)
    engine.submit(Request(prompt_of(60, 1), 300))
    engine.step()
    prompt = prompt_of(250, 2)
    engine.submit(Request(prompt, 100, prompt_logits=True))
    events = drain(engine)
    logits = np.concatenate([event.logits for event in events if event.logits is not None])
    assert engine.scheduler.preemptions > 0
    assert logits.argmax(-1).tolist() == [next_token(list(prompt[: n + 1])) for n in range(250)]
    assert tokens_of(events, 2) == expected_answer(prompt, 100)


@pytest.mark.parametrize("first", [0, 40, 200])
def test_a_preempted_request_returns_each_hidden_state_once(first):
    engine = new_engine(pages=5, slots=3, chunk=32)
    for seed in range(2):
        engine.submit(Request(prompt_of(60, seed), 80))
        engine.step()
    prompt = prompt_of(250, 2)
    engine.submit(Request(prompt, 0, output="hidden", logits_from=first))
    events = drain(engine)
    rows = np.concatenate([event.hidden for event in events if event.hidden is not None])
    assert engine.scheduler.preemptions > 0
    assert rows[:, :2].tolist() == [[n + 1, next_token(list(prompt[: n + 1]))] for n in range(first, 250)]


def test_a_cancelled_request_that_was_preempted_leaves_nothing():
    engine = new_engine(pages=4, slots=2)
    for seed in range(2):
        engine.submit(Request(prompt_of(60, seed), 150))
    while not engine.scheduler.preemptions:
        engine.step()
    assert list(engine.scheduler.running) == [1]
    assert [request_id for request_id, _ in engine.scheduler.waiting] == [2]
    engine.cancel(2)
    assert tokens_of(drain(engine), 1)[-1] == expected_answer(prompt_of(60), 150)[-1]
    assert not engine.scheduler._preempted
    assert engine.pool.available == 4


def test_the_least_recently_used_prefix_is_evicted_from_its_end():
    pool = PagePool(6)
    texts = [prompt_of(192, seed) for seed in range(3)]
    for text in texts[:2]:
        table = PageTable(pool, "")
        table.reserve(192)
        table.register(text, 192)
        table.clear()
    assert pool.cached == 6
    refreshed = PageTable(pool, "")
    assert refreshed.share(texts[0], 192) == 192
    refreshed.clear()
    table = PageTable(pool, "")
    table.reserve(70)
    assert pool.evictions == 2
    assert pool.match("", texts[0], 192) == (3, 3)
    assert pool.match("", texts[1], 192) == (1, 1)
    table.register(texts[2], 64)
    assert pool.match("", texts[2], 192) == (1, 0)


def test_equal_pages_that_were_computed_twice_are_merged():
    pool = PagePool(6)
    text = prompt_of(128)
    tables = [PageTable(pool, "") for _ in range(2)]
    for table in tables:
        table.reserve(128)
    for table in tables:
        table.register(text, 128)
    assert tables[0].pages == tables[1].pages
    assert pool.available == 4
    for table in tables:
        table.clear()
    assert (pool.available, pool.cached) == (6, 2)


@pytest.mark.parametrize(("pages", "kept"), [(100, 100), (400, 128), (1000, 250)])
def test_prefixes_of_ended_requests_use_part_of_the_cache(pages, kept):
    pool = PagePool(pages)
    table = PageTable(pool, "")
    text = prompt_of(pages * 64)
    table.reserve(len(text))
    table.register(text, len(text))
    assert pool.available == 0
    table.clear()
    assert (pool.available, pool.cached, pool.evictions) == (pages, kept, pages - kept)
    table.reserve(64)
    assert table.pages == [kept if kept < pages else pages - 1]  # the lowest free number, or the end of the prefix


def test_a_failed_forward_pass_can_be_repeated(monkeypatch):
    engine = new_engine(slots=3)
    for seed in range(3):
        engine.submit(Request(prompt_of(70, seed), 100, Sampling(temperature=1.0, seed=seed)))
    expected = drain(engine)
    engine = new_engine(slots=3)
    for seed in range(3):
        engine.submit(Request(prompt_of(70, seed), 100, Sampling(temperature=1.0, seed=seed)))
    forward, random, events = engine.backend.forward, np.random.default_rng(0), []

    def interrupted(batch):
        outputs = forward(batch)
        if random.random() < 0.3:
            raise KeyboardInterrupt
        return outputs

    monkeypatch.setattr(engine.backend, "forward", interrupted)
    while engine.busy:
        with suppress(KeyboardInterrupt):
            events += engine.step()
    assert len(engine.backend.batches) > 120  # 101 steps without failures
    assert [tokens_of(events, n) for n in (1, 2, 3)] == [tokens_of(expected, n) for n in (1, 2, 3)]
    assert engine.pool.available == engine.pool.pages


def test_a_step_that_fails_after_some_requests_have_advanced_loses_no_events(monkeypatch):
    engine = new_engine(slots=3)
    for seed in range(3):
        engine.submit(Request(prompt_of(70, seed), 5))
    commit, calls, events = Sampler.commit, [], []

    def fails_at_every_fourth_call(self, token):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise MemoryError
        commit(self, token)

    monkeypatch.setattr(Sampler, "commit", fails_at_every_fourth_call)
    while engine.busy:
        with suppress(MemoryError):
            events += engine.step()
    assert [tokens_of(events, n) for n in (1, 2, 3)] == [expected_answer(prompt_of(70, n), 5) for n in range(3)]
    assert [len([e for e in events if e.request_id == n and e.finish_reason]) for n in (1, 2, 3)] == [1, 1, 1]
    assert engine.pool.available == engine.pool.pages
