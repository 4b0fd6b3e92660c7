"""The decode loop, on a fake backend whose logits are a known function of the cached tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from puna.backend import split_outputs
from puna.engine import Engine, Request, Sampling
from puna.errors import BackendError, RequestError
from tests.engine.recorder import VOCAB, Recorder, drain, expected_answer, next_token, tokens_of


def test_greedy_answers_do_not_depend_on_slots_and_chunks():
    generator = np.random.default_rng(5)
    for slots, chunk in [(1, 512), (1, 3), (2, 1), (3, 4), (5, 100)]:
        engine = Engine(Recorder(), slots, chunk)
        requests = {}
        for _ in range(7):
            prompt = tuple(generator.integers(0, VOCAB, generator.integers(1, 12)).tolist())
            count = int(generator.integers(1, 9))
            requests[engine.submit(Request(prompt, count))] = (prompt, count)
        events = drain(engine)
        for request_id, (prompt, count) in requests.items():
            assert tokens_of(events, request_id) == expected_answer(prompt, count)
            request_events = [event for event in events if event.request_id == request_id]
            assert sum(event.prompt_tokens for event in request_events) == len(prompt)
            assert [event.finish_reason for event in request_events if event.finish_reason] == ["length"]
        assert engine.pool.available == engine.pool.pages


def test_a_step_limits_prompt_tokens_and_lets_other_requests_decode():
    engine = Engine(Recorder(), slots=2, chunk=4)
    engine.submit(Request((1, 2), 20))
    engine.step()
    engine.submit(Request(tuple(range(10)), 1))
    for _ in range(4):
        engine.step()
    # The second step only decodes: its time decides how many prompt tokens the next steps read, at least 4.
    assert engine.backend.batches == [[2], [1], [1, 4], [1, 4], [1, 2]]


def test_requests_wait_for_free_pages():
    engine = Engine(Recorder(pages=2), slots=4)  # each request needs one page
    for _ in range(5):
        engine.submit(Request((1, 2), 3))
    engine.step()
    assert len(engine.backend.batches[0]) == 2
    assert {event.request_id for event in drain(engine) if event.finish_reason} == {1, 2, 3, 4, 5}
    assert max(map(len, engine.backend.batches)) == 2


def test_a_request_that_never_fits_the_cache_is_an_error():
    engine = Engine(Recorder(pages=0))
    with pytest.raises(RequestError, match="need a cache of 64 tokens, but memory is enough for 0"):
        engine.submit(Request((1, 2), 3))


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it():
    prompt = (4, 9)
    answer = expected_answer(prompt, 5)
    engine = Engine(Recorder())
    request_id = engine.submit(Request(prompt, 5, stop_ids=frozenset({answer[2]})))
    events = drain(engine)
    assert tokens_of(events, request_id) == answer[:2]
    assert events[-1].finish_reason == "stop"


def test_prompt_logits_cover_every_position_in_order():
    prompt = tuple(range(1, 11))
    engine = Engine(Recorder(), chunk=4)
    engine.submit(Request(prompt, 0, prompt_logits=True))
    events = drain(engine)
    logits = np.concatenate([event.logits for event in events])
    assert logits.argmax(-1).tolist() == [next_token(list(prompt[: n + 1])) for n in range(10)]
    assert events[-1].finish_reason == "length"


def test_a_batch_may_have_hidden_states_and_logits():
    engine = Engine(Recorder(context=256), slots=4, chunk=40)
    prompts = [tuple(range(1, 30)), (5, 6, 7), tuple(range(2, 26)), (9, 9)]
    first = engine.submit(Request(prompts[0], 0, output="hidden"))
    second = engine.submit(Request(prompts[1], 6))
    third = engine.submit(Request(prompts[2], 0, output="hidden", logits_from=20))
    fourth = engine.submit(Request(prompts[3], 0, prompt_logits=True))
    events = drain(engine)
    assert len(engine.backend.batches[0]) > 2
    for request_id, prompt, start in ((first, prompts[0], 0), (third, prompts[2], 20)):
        rows = np.concatenate([e.hidden for e in events if e.request_id == request_id and e.hidden is not None])
        expected = [(n + 1, next_token(list(prompt[: n + 1]))) for n in range(start, len(prompt))]
        assert rows[:, :2].tolist() == [list(row) for row in expected]
    assert tokens_of(events, second) == expected_answer(prompts[1], 6)
    logits = np.concatenate([e.logits for e in events if e.request_id == fourth])
    assert logits.argmax(-1).tolist() == [next_token([9]), next_token([9, 9])]
    assert all(e.logits is None for e in events if e.request_id in (first, second, third))
    assert all(e.hidden is None for e in events if e.request_id in (second, fourth))


def test_one_request_may_return_prompt_logits_and_generate():
    engine = Engine(Recorder(), chunk=2)
    engine.submit(Request((1, 2, 3), 2, prompt_logits=True))
    events = drain(engine)
    assert sum(len(event.logits) for event in events if event.logits is not None) == 3
    assert [event.token for event in events if event.token is not None] == expected_answer((1, 2, 3), 2)


def test_cancelled_requests_free_their_pages():
    engine = Engine(Recorder())
    active, waiting = engine.submit(Request((1, 2), 9)), engine.submit(Request((3,), 2))
    engine.step()
    engine.cancel(waiting)
    engine.cancel(active)
    engine.cancel(active)
    assert not engine.busy
    assert engine.pool.available == engine.pool.pages
    assert engine.step() == []


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Request((), 1), "no tokens"),
        (lambda: Request((1,), -1), "max_tokens is -1"),
        (lambda: Request((1,), 2.0), "max_tokens is 2.0"),
        (lambda: Request((VOCAB,), 1), f"token id {VOCAB} .* vocabulary of {VOCAB}"),
        (lambda: Request((-1,), 1), "token id -1"),
        (
            lambda: Request((1,) * 10, 55),
            r"tokens \(10\) and max_tokens \(55\) .* context of 64 tokens; set max_tokens to 54 or less",
        ),
        (lambda: Request((1,) * 65, 0), r"tokens \(65\) .* shorten the prompt"),
    ],
)
def test_impossible_requests_are_errors(build, words):
    engine = Engine(Recorder())
    with pytest.raises(RequestError, match=words):
        engine.submit(build())
    assert not engine.busy


def test_sampling_does_not_depend_on_other_requests():
    def run(others: int) -> list[int]:
        engine = Engine(Recorder(), slots=4)
        ids = [engine.submit(Request((n, 5), 8, Sampling(temperature=2.0, seed=n))) for n in range(others + 1)]
        return tokens_of(drain(engine), ids[0])

    assert run(0) == run(3)


class BackendWithNan(Recorder):
    """A backend whose logits are NaN for texts that begin with token 1, from the sixth token on."""

    def forward(self, batch):
        outputs = super().forward(batch)
        for row, chunk in enumerate(batch):
            if self.cache[chunk.pages[0], 0] == 1 and chunk.start + len(chunk.tokens) >= 6:
                outputs.logits[row] = np.nan
        return outputs


def test_nan_logits_end_only_their_own_request():
    backend = BackendWithNan()
    engine = Engine(backend, 2)
    damaged, valid = engine.submit(Request((1, 2, 3), 10)), engine.submit(Request((4, 5, 6), 10))
    events = drain(engine)
    failed = [event for event in events if event.error is not None]
    assert [event.request_id for event in failed] == [damaged]
    assert isinstance(failed[0].error, BackendError)
    assert "not finite" in str(failed[0].error)
    assert [event.token for event in events if event.request_id == damaged] == [*expected_answer((1, 2, 3), 3), None]
    assert [event.token for event in events if event.request_id == valid] == expected_answer((4, 5, 6), 10)
    assert engine.pool.available == engine.pool.pages


class ChoosingRecorder(Recorder):
    """A backend that chooses tokens; -1 for texts that begin with token 1, from the sixth token on."""

    chooses_tokens = True

    def forward(self, batch):
        logits = super().forward([replace(chunk, output="logits") for chunk in batch]).logits
        parts = np.split(logits, np.cumsum([chunk.rows for chunk in batch])[:-1])
        outputs = []
        for chunk, rows in zip(batch, parts, strict=True):
            damaged = self.cache[chunk.pages[0], 0] == 1 and chunk.start + len(chunk.tokens) >= 6
            tokens = np.where(damaged, -1, rows.argmax(-1))
            outputs.append(tokens if chunk.output == "token" else rows)
        self.outputs = [chunk.output for chunk in batch]
        return split_outputs(batch, outputs, self.config)


def test_a_backend_chooses_tokens_if_no_option_needs_logits():
    changes = [
        {"temperature": 0.5}, {"logprobs": 0}, {"logit_bias": {3: 1.0}}, {"allowed_token_ids": (3, 4)},
        {"presence_penalty": 0.1}, {"min_tokens": 1}, {"bad_words_ids": ((3,),)},
    ]  # fmt: skip
    backend = ChoosingRecorder()
    engine = Engine(backend, 10)
    ids = [engine.submit(Request((4, 5, n), 6, Sampling(**fields))) for n, fields in enumerate([{}, *changes, {}])]
    ids.append(engine.submit(Request((4, 5, 6), 6, Sampling(), prompt_logits=True)))
    events = engine.step()
    assert backend.outputs == ["token", *["logits"] * len(changes), "token", "logits"]
    events += drain(engine)
    for n in (0, len(changes) + 1):
        assert tokens_of(events, ids[n]) == expected_answer((4, 5, n), 6)
    assert all(event.logprobs is not None for event in events if event.request_id == ids[2])


def test_a_request_fails_if_the_backend_cannot_choose():
    engine = Engine(ChoosingRecorder(), 2)
    damaged, valid = engine.submit(Request((1, 2, 3), 10)), engine.submit(Request((4, 5, 6), 10))
    events = drain(engine)
    failed = [event for event in events if event.error is not None]
    assert [event.request_id for event in failed] == [damaged]
    assert isinstance(failed[0].error, BackendError)
    assert "not finite" in str(failed[0].error)
    assert tokens_of(events, damaged) == expected_answer((1, 2, 3), 3)
    assert tokens_of(events, valid) == expected_answer((4, 5, 6), 10)


def answer_of(prompt: tuple[int, ...], max_tokens: int, eos: frozenset[int], **options) -> tuple[list[int], int | None]:
    """Returns the tokens of a request alone, and the id that ended it."""
    engine = Engine(Recorder())
    engine.submit(Request(prompt, max_tokens, Sampling(**options), eos))
    events = []
    while engine.busy:
        events += engine.step()
    return [event.token for event in events if event.token is not None], events[-1].stop_id


def test_stop_token_ids_and_ignore_eos_decide_which_ids_end_an_answer():
    free, _ = answer_of((4, 9), 8, frozenset())
    eos, other = free[3], free[5]
    assert len({*free[:6]}) == 6
    assert answer_of((4, 9), 8, frozenset({eos})) == (free[:3], eos)
    assert answer_of((4, 9), 8, frozenset({eos}), ignore_eos=True) == (free, None)
    assert answer_of((4, 9), 8, frozenset({eos}), ignore_eos=True, stop_token_ids=[other]) == (free[:5], other)
    assert answer_of((4, 9), 8, frozenset({other}), stop_token_ids=[eos]) == (free[:3], eos)


def test_min_tokens_delays_the_end_of_an_answer():
    free, _ = answer_of((4, 9), 8, frozenset())
    tokens, _ = answer_of((4, 9), 8, frozenset({free[3]}), min_tokens=4)
    assert tokens[:3] == free[:3] and len(tokens) >= 4 and free[3] not in tokens
    every = frozenset(range(1, VOCAB))
    assert answer_of((4, 9), 8, every, min_tokens=3)[0][:3] == [0, 0, 0]  # only token 0 does not end the answer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logit_bias": {VOCAB: 1}}, "logit_bias has the id 31; the vocabulary has ids 0 to 30"),
        ({"allowed_token_ids": [3, 99]}, "allowed_token_ids has the id 99"),
        ({"stop_token_ids": [31]}, "stop_token_ids has the id 31"),
        ({"min_tokens": 9}, "min_tokens is 9, but max_tokens is 8"),
        ({"min_tokens": 1, "allowed_token_ids": [5]}, "allowed_token_ids has only ids that end the answer"),
    ],
)
def test_options_that_do_not_fit_the_request_are_errors(options, words):
    with pytest.raises(RequestError, match=words):
        answer_of((4, 9), 8, frozenset({5}), **options)


def first_tokens_order(priorities: list[int], pages: int = 100, slots: int = 1) -> list[int]:
    """Returns the numbers of requests with these priorities in the order of their first tokens."""
    engine = Engine(Recorder(pages), slots=slots)
    ids = [engine.submit(Request((number + 1, 2), 3, priority=value)) for number, value in enumerate(priorities)]
    order: list[int] = []
    while engine.busy:
        for event in engine.step():
            if event.token is not None and event.request_id not in order:
                order.append(event.request_id)
    return [ids.index(request_id) for request_id in order]


def test_waiting_requests_run_by_priority_and_in_order_of_arrival():
    assert first_tokens_order([0, 0, 0]) == [0, 1, 2]
    assert first_tokens_order([3, 1, 2, 1, -5, 3]) == [4, 1, 3, 2, 0, 5]


def test_a_request_of_lower_priority_loses_its_pages_first():
    engine = Engine(Recorder(pages=3, context=192), slots=3, prefix_cache=False)
    prompts = [tuple(range(1 + number, 25 + number)) for number in range(3)]
    ids = [engine.submit(Request(prompt, 100, priority=-index)) for index, prompt in enumerate(prompts)]
    ends: list[int] = []
    events = []
    while engine.busy:
        events += engine.step()
        ends = list(dict.fromkeys([*ends, *(event.request_id for event in events if event.finish_reason)]))
    assert engine.scheduler.preemptions > 0
    assert ends[0] == ids[2]
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert tokens_of(events, request_id) == expected_answer(prompt, 100)


@pytest.mark.parametrize("options", [{"salt": "x" * 1025}, {"salt": "\ud800"}, {"salt": 3}, {"priority": 1.5},
                                     {"priority": 2**63}, {"priority": True}])  # fmt: skip
def test_salts_and_priorities_are_checked(options):
    with pytest.raises(RequestError, match=f"{next(iter(options))} is"):
        Request((1,), 3, **options)


def test_requests_with_different_salts_share_no_pages():
    engine = Engine(Recorder(context=192))
    prompt = tuple(range(1, 31)) * 5
    cached = []
    for salt in ("", "a", "b", "a", ""):
        engine.submit(Request(prompt, 1, salt=salt))
        cached.append(sum(event.cached_tokens for event in drain(engine)))
    assert cached == [0, 0, 0, 149, 149]
