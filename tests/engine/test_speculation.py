"""Speculation by prompt lookup changes only the number of steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from puna.engine import Engine, Request, Sampling
from puna.engine.lookup import Lookup
from puna.native import NativeBackend
from tests.helpers.configurations import config_of
from tests.helpers.native import pack_state
from tests.helpers.random_weights import random_state


def run_requests(speculate: bool, requests: list[Request], slots: int) -> tuple[list[tuple], int]:
    """Returns (tokens, finish reasons) of each request, and the number of steps, which seem to take equally long."""
    config = config_of(vocab_size=12, max_position_embeddings=128)
    backend = NativeBackend(config, pack_state("f32", random_state(config)), 1, slots)
    engine = Engine(backend, slots, clock=count().__next__)
    ids = [
        engine.submit(Request(r.prompt_ids, r.max_tokens, r.sampling, r.stop_ids, speculate=speculate))
        for r in requests
    ]
    events, steps = [], 0
    while engine.busy:
        events += engine.step()
        steps += 1
    results = []
    for request_id in ids:
        request_events = [event for event in events if event.request_id == request_id]
        reasons = [event.finish_reason for event in request_events if event.finish_reason]
        tokens = [(event.token, event.logprobs) for event in request_events if event.token is not None]
        results.append((tokens, reasons))
    return results, steps


@pytest.mark.parametrize("slots", [1, 3])
def test_speculation_needs_fewer_steps_for_the_same_answers(slots):
    random = np.random.default_rng(2)
    requests = []
    for number in range(12):
        prompt = tuple(np.tile(random.integers(0, 12, 5), 4).tolist())
        options = (
            {},
            {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "logprobs": 3},
            {"temperature": 0.8, "typical_p": 0.9, "presence_penalty": 0.3, "logit_bias": {3: 1.5}},
            {"frequency_penalty": -0.5, "allowed_token_ids": tuple(range(0, 12, 2)), "logprobs": 0},
        )
        sampling = Sampling(**options[number % 4], seed=number)
        stops = frozenset({int(random.integers(0, 12))}) if number % 3 == 0 else frozenset()
        length = int(random.choice([1, 2, 30, 108]))
        requests.append(Request(prompt, length, replace(sampling, min_tokens=min(length, number)), stops))
    plain, plain_steps = run_requests(False, requests, slots)
    speculative, speculative_steps = run_requests(True, requests, slots)
    assert speculative == plain
    assert speculative_steps < plain_steps


class BackendWithNan(NativeBackend):
    """A backend whose logits are NaN from position 40 on."""

    def forward(self, batch):
        outputs = super().forward(batch)
        row = 0
        for chunk in batch:
            for index in range(chunk.rows):
                if chunk.start + len(chunk.tokens) - chunk.rows + index >= 40:
                    outputs.logits[row + index] = np.nan
            row += chunk.rows
        return outputs


@pytest.mark.parametrize("speculate", [False, True])
def test_tokens_chosen_before_nan_logits_are_kept(speculate):
    config = config_of(vocab_size=12, max_position_embeddings=128)
    backend = BackendWithNan(config, pack_state("f32", random_state(config)), 1)
    engine = Engine(backend, 1, clock=count().__next__)
    engine.submit(Request(tuple([1, 2, 3, 4, 5] * 4), 100, speculate=speculate))
    events = []
    while engine.busy:
        events += engine.step()
    assert len([event for event in events if event.token is not None]) == 21
    assert "not finite" in str(events[-1].error)


def test_lookup_guesses_the_tokens_after_an_earlier_occurrence():
    tokens = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    lookup = Lookup(tokens)
    assert lookup.guess(8) == ()  # nothing is indexed yet
    lookup.index()
    assert lookup.guess(8) == (4, 5, 6, 1, 2, 3)
    assert lookup.guess(2) == (4, 5)
    tokens.append(9)
    lookup.index()
    assert lookup.guess(8) == ()
    tokens += [5, 6]
    lookup.index()
    assert lookup.guess(8) == (1, 2, 3, 9, 5, 6)


def test_lookup_measures_its_accuracy_without_using_its_guesses():
    tokens = [1, 2, 3, 4] * 3
    lookup = Lookup(tokens)
    accuracies = []
    for token in (1, 2, 3, *[3, 4, 1] * 30):
        lookup.index()
        lookup.observe(token)
        tokens.append(token)
        accuracies.append(lookup.accuracy)
    assert 0.3 < accuracies[0] < accuracies[1] < accuracies[2]
    assert accuracies[4] < accuracies[2]
    assert accuracies[-1] > 0.95
    tokens += [77, 78]
    lookup.index()
    lookup.observe(5)  # no guess: nothing to compare
    assert lookup.accuracy == accuracies[-1]


def test_a_long_prompt_is_indexed_in_parts():
    tokens = [*range(5000), 0, 1]
    lookup = Lookup(tokens)
    guesses = []
    for _ in range(6):
        lookup.index()
        guesses.append(lookup.guess(2))
    assert guesses == [(2, 3)] * 6
    tokens[-2:] = [4000, 4001]
    lookup = Lookup(tokens)
    for _ in range(3):
        lookup.index()
    assert lookup.guess(1) == ()
    lookup.index()
    assert lookup.guess(1) == (4002,)
