"""Speculation by prompt lookup changes nothing but the number of steps."""

from __future__ import annotations

import numpy as np
import pytest

from puna.engine import Engine, Request, Sampling
from puna.engine.lookup import MOST, Lookup
from puna.native import NativeBackend
from tests.native.weights import model_in

pytest.importorskip("torch")

from tests.model.twins import config_of, pair


def answers(speculate: bool, requests: list[Request], slots: int) -> tuple[list[tuple], int]:
    """(tokens and reason) of each request, and the number of steps."""
    config = config_of(vocab_size=12, max_position_embeddings=128)
    state = {key: value.detach().numpy() for key, value in pair(config)[0].state_dict().items()}
    engine = Engine(NativeBackend(config, model_in("f32", state), 1, slots), slots)
    ids = [
        engine.submit(Request(r.prompt_ids, r.max_tokens, r.sampling, r.stop_ids, speculate=speculate))
        for r in requests
    ]
    events, steps = [], 0
    while engine.busy:
        events += engine.step()
        steps += 1
    found = []
    for request_id in ids:
        own = [event for event in events if event.request_id == request_id]
        reasons = [event.finish_reason for event in own if event.finish_reason]
        found.append(([event.token for event in own if event.token is not None], reasons))
    return found, steps


@pytest.mark.parametrize("slots", [1, 3])
def test_the_same_answers_in_fewer_steps(slots):
    random = np.random.default_rng(2)
    requests = []
    for number in range(12):
        prompt = tuple(np.tile(random.integers(0, 12, 5), 4).tolist())
        sampling = (
            Sampling() if number % 2 else Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=number)
        )
        stops = frozenset({int(random.integers(0, 12))}) if number % 3 == 0 else frozenset()
        requests.append(Request(prompt, int(random.choice([1, 2, 30, 108])), sampling, stops))
    plain, steps = answers(False, requests, slots)
    guessed, fewer = answers(True, requests, slots)
    assert guessed == plain
    assert fewer < steps


class Damaged(NativeBackend):
    """Whose logits are no numbers from a position on."""

    def forward(self, batch):
        logits = super().forward(batch)
        row = 0
        for chunk in batch:
            for place in range(chunk.logits):
                if chunk.start + len(chunk.tokens) - chunk.logits + place >= 40:
                    logits[row + place] = np.nan
            row += chunk.logits
        return logits


@pytest.mark.parametrize("speculate", [False, True])
def test_what_was_chosen_before_damaged_logits_counts(speculate):
    config = config_of(vocab_size=12, max_position_embeddings=128)
    state = {key: value.detach().numpy() for key, value in pair(config)[0].state_dict().items()}
    engine = Engine(Damaged(config, model_in("f32", state), 1), 1)
    engine.submit(Request(tuple([1, 2, 3, 4, 5] * 4), 100, speculate=speculate))
    events = []
    while engine.busy:
        events += engine.step()
    assert len([event for event in events if event.token is not None]) == 21
    assert "not finite" in str(events[-1].error)


def test_lookup_guesses_what_followed():
    lookup = Lookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert lookup.guess(8) == (4, 5, 6, 1, 2, 3)
    assert lookup.guess(2) == (4, 5)
    lookup.extend([9])
    assert lookup.guess(8) == ()
    lookup.learn(6, 0)
    lookup.extend([5, 6])
    assert lookup.guess(8) == (1, 2)
    lookup.learn(2, 2)
    assert MOST >= 4 and len(lookup.guess(8)) == 4
