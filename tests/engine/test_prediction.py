"""A prediction changes only the number of steps: answers have the same bits, in every batch and after a deviation."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from puna.engine import Engine, Request, Sampling
from puna.engine.lookup import guess_length
from puna.engine.prediction import Prediction
from puna.engine.step_times import StepTimes
from puna.errors import RequestError
from puna.native import NativeBackend
from tests.engine.recorder import Recorder
from tests.helpers.configurations import config_of
from tests.helpers.native import pack_state
from tests.helpers.random_weights import random_state

ANSWERS = {
    "greedy": Sampling(logprobs=2),
    "sampled": Sampling(0.9, top_p=0.9, repetition_penalty=1.2, seed=7, logprobs=0),
    "hot": Sampling(1.4, presence_penalty=0.5, seed=8),
}
LENGTH = 60


@pytest.fixture(scope="module")
def backend():
    config = config_of(vocab_size=40, max_position_embeddings=256)
    backend = NativeBackend(config, pack_state("f32", random_state(config)), 1, 4)
    yield backend
    backend.close()


def run(backend, requests: list[Request], slots: int = 1, chunk: int = 512) -> tuple[list[list], Engine, int]:
    """Returns (tokens, log-probabilities) of each request, the engine, and the number of steps."""
    engine = Engine(backend, slots, chunk, clock=count().__next__)  # steps seem to take equally long
    ids = [engine.submit(request) for request in requests]
    events, steps = [], 0
    while engine.busy:
        events += engine.step()
        steps += 1
    assert not any(event.error for event in events)
    tokens = [[(event.token, event.logprobs) for event in events if event.request_id == i and event.token is not None]
              for i in ids]  # fmt: skip
    return tokens, engine, steps


def edited(ids: list[int], kind: str) -> tuple[int, ...]:
    """Returns a prediction that resembles an answer."""
    middle = len(ids) // 2
    return tuple(
        {
            "equal": ids,
            "longer": [*ids, 1, 2, 3],
            "shorter": ids[:middle],
            "replaced": [*ids[:middle], 39, *ids[middle + 1 :]],
            "removed": [*ids[:middle], *ids[middle + 3 :]],
            "inserted": [*ids[:middle], 39, 38, 37, *ids[middle:]],
            "late": ids[10:],
            "other": [39, 38] * 30,
            "twice": [*ids, *ids],
        }[kind]
    )


EDITS = ("equal", "longer", "shorter", "replaced", "removed", "inserted", "late", "other", "twice")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_prediction_changes_neither_tokens_nor_log_probabilities(backend, name):
    prompt = (1, 2, 3, 4, 5)
    request = Request(prompt, LENGTH, ANSWERS[name])
    ((alone,), _, plain_steps) = run(backend, [request])
    ids = [token for token, _ in alone]
    requests, steps = [], {}
    for kind in EDITS:
        requests.append(replace(request, speculate=True, prediction=edited(ids, kind)))
        ((tokens,), engine, steps[kind]) = run(backend, requests[-1:])
        assert tokens == alone, kind
        counters = engine.counters
        assert counters.draft_tokens >= counters.accepted_tokens
        accepted, rejected = counters.accepted_prediction_tokens, counters.rejected_prediction_tokens
        assert accepted + rejected >= len(requests[-1].prediction)
        if kind in ("equal", "longer", "shorter"):
            assert accepted == min(len(ids), len(requests[-1].prediction))
    assert steps["equal"] < plain_steps / 6
    assert steps["replaced"] < plain_steps / 3
    assert steps["inserted"] < plain_steps / 3
    assert steps["removed"] < plain_steps / 3
    for slots, chunk in ((4, 512), (3, 2)):
        batch, _, _ = run(backend, [*requests, request], slots, chunk)
        assert batch == [alone] * (len(requests) + 1)


def test_several_requests_with_predictions_share_steps(backend):
    requests = [Request((1, 2, number), LENGTH, replace(ANSWERS["sampled"], seed=number)) for number in range(4)]
    plain, _, plain_steps = run(backend, requests, 4)
    predicted = [
        replace(request, speculate=True, prediction=tuple(token for token, _ in tokens))
        for request, tokens in zip(requests, plain, strict=True)
    ]
    tokens, engine, steps = run(backend, predicted, 4)
    assert tokens == plain
    assert steps < plain_steps / 4
    assert engine.counters.accepted_tokens > LENGTH * 3
    half = [*predicted[:2], *requests[2:]]  # the requests without predictions guess nothing
    tokens, engine, _ = run(backend, half, 4)
    assert tokens == plain
    assert 0 < engine.counters.accepted_tokens < 2 * LENGTH


def test_guesses_for_one_request_do_not_delay_the_others_too_much():
    times = StepTimes()
    for tokens, seconds in ((4, 1.0), (8, 1.5), (16, 2.5), (24, 3.5), (32, 8.0)):
        for _ in range(3):
            times.record(tokens, 0, seconds)
    assert guess_length(0.99, 31, times, 4, 4.0) == 20
    assert guess_length(0.99, 31, times, 4, 4.0, limit=2.0) == 4
    assert guess_length(0.99, 31, times, 4, 4.0, limit=1.2) == 0
    assert guess_length(0.1, 31, times, 4, 4.0) == 0


def test_the_counts_of_a_prediction_depend_neither_on_the_batch_nor_on_speculation(backend):
    request = Request((1, 2, 3), LENGTH, ANSWERS["greedy"])
    ((alone,), _, _) = run(backend, [request])
    prediction = edited([token for token, _ in alone], "replaced")
    counts = []
    for speculate, others in ((True, 0), (False, 0), (True, 3)):
        engine = Engine(backend, 4, clock=count().__next__)
        request_id = engine.submit(replace(request, speculate=speculate, prediction=prediction))
        for number in range(others):
            engine.submit(Request((9, number), 80))
        ends = []
        while engine.busy:
            ends += [event for event in engine.step() if event.finish_reason and event.request_id == request_id]
        counts.append(ends[0].prediction)
    assert counts[0] == counts[1] == counts[2]
    accepted, rejected = counts[0]
    assert accepted + rejected == len(prediction)
    assert accepted >= LENGTH - 4


def test_a_prediction_is_found_again_after_a_deviation():
    prediction = Prediction([1, 2, 3, 4, 5, 6, 7, 2, 3, 9])
    assert prediction.guess(3) == (1, 2, 3)
    for token in (1, 2):
        prediction.observe(token)
    assert prediction.guess(99) == (3, 4, 5, 6, 7, 2, 3, 9)
    prediction.observe(8)
    assert prediction.guess(9) == ()
    prediction.observe(4)
    assert prediction.guess(9) == ()
    prediction.observe(5)
    assert prediction.guess(2) == (6, 7)
    prediction.observe(6)
    prediction.observe(2)  # the token 7 was left out
    assert prediction.guess(9) == ()
    prediction.observe(3)
    assert prediction.guess(9) == (9,)  # the occurrence after the deviation
    prediction.observe(9)
    assert prediction.guess(9) == ()
    assert (prediction.accepted, prediction.rejected) == (4, 6)


def test_a_text_of_equal_tokens_is_a_prediction():
    prediction = Prediction([5] * 40)
    for _ in range(45):
        prediction.observe(5)
    assert (prediction.accepted, prediction.rejected) == (40, 0)


def test_the_ids_of_a_prediction_are_checked():
    engine = Engine(Recorder())
    with pytest.raises(RequestError, match="the prediction's id 31 is not in the vocabulary of 31"):
        engine.submit(Request((1,), 3, prediction=(1, 31)))


def test_random_predictions_in_random_batches(backend):
    random = np.random.default_rng(4)
    for _ in range(4):
        requests = []
        for _ in range(6):
            prompt = tuple(random.integers(0, 40, int(random.integers(1, 90))).tolist())
            sampling = replace(ANSWERS[str(random.choice(list(ANSWERS)))], seed=int(random.integers(99)))
            requests.append(Request(prompt, int(random.integers(1, 50)), sampling))
        expected = [run(backend, [request])[0][0] for request in requests]
        with_predictions = []
        for request, tokens in zip(requests, expected, strict=True):
            ids = [token for token, _ in tokens]
            for index in random.integers(0, len(ids), int(random.integers(0, 4))):
                ids[index] = int(random.integers(0, 40))
            with_predictions.append(replace(request, speculate=True, prediction=tuple(ids)))
        slots = int(random.choice([1, 2, 4]))
        tokens, engine, _ = run(backend, with_predictions, slots, int(random.choice([7, 64, 512])))
        assert tokens == expected
        assert engine.pool.available == engine.pool.pages
