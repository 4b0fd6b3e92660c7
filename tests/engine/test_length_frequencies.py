"""Rope types whose frequencies depend on the length of the text: answers of the engine equal a float64 reference.

They depend neither on other requests of the batch nor on chunks, cached prefixes, guesses or lost pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from puna.config import LlamaConfig
from puna.engine import Engine, Request, Sampling
from tests.engine.recorder import drain
from tests.helpers.configurations import config_of, longrope
from tests.helpers.native import pack
from tests.helpers.random_weights import random_state
from tests.helpers.reference_float64 import log_softmax, reference_logits
from tests.helpers.torch_files import BACKENDS

LIMIT = 40
"""The context beyond which the frequencies change."""

SETTINGS: dict[str, Any] = {
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": LIMIT},
    "longrope": {"rope_scaling": longrope(12, original=LIMIT), "max_position_embeddings": 160},
}


def new_backend(name: str, config: LlamaConfig, state: dict[str, np.ndarray], slots: int) -> Any:
    if name == "native":
        from puna.native import NativeBackend

        tensors = {key: pack("f32", value, np.random.default_rng(0)) for key, value in state.items()}
        return NativeBackend(config, tensors, 2, slots)
    import torch

    from puna.model import LlamaForCausalLM, TorchBackend

    model = LlamaForCausalLM(config)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return TorchBackend(model, slots)


def requests_of(random: np.random.Generator) -> list[Request]:
    """Returns prompts up to and beyond the limit; some begin with the same tokens, or repeat their tokens."""
    common = random.integers(0, 67, 100).tolist()
    repeated = np.tile(random.integers(0, 67, 6), 12).tolist()
    prompts = [random.integers(0, 67, length).tolist() for length in (5, LIMIT - 1, LIMIT, LIMIT + 1, 70)]
    prompts += [[*common[:length], number] for number, length in enumerate((20, 64, 70, 100, 100))]
    prompts += [repeated, repeated[3:40], common]
    sampling = Sampling(temperature=0, logprobs=0)
    return [
        Request(tuple(prompt), 40 if len(prompt) < 90 else 12, sampling, speculate=number % 2 == 0)
        for number, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rope", SETTINGS)
def test_answers_equal_float64_in_any_schedule(rope: str, backend: str) -> None:
    config = config_of(**SETTINGS[rope], num_key_value_heads=2)
    state = random_state(config)
    engine = Engine(new_backend(backend, config, state, 2), slots=4, chunk=24)
    requests = requests_of(np.random.default_rng(0))
    submitted = {engine.submit(request): request for request in (*requests, *requests[::-1])}
    events = drain(engine)
    assert any(event.cached_tokens for event in events)
    expected: dict[tuple[int, ...], np.ndarray] = {}
    for request_id, request in submitted.items():
        answer = [(e.token, e.logprobs) for e in events if e.request_id == request_id and e.token is not None]
        assert len(answer) == request.max_tokens
        text = (*request.prompt_ids, *(token for token, _ in answer))
        if text not in expected:
            expected[text] = log_softmax(reference_logits(config, state, np.array(text)))
        for row, (token, logprobs) in zip(expected[text][len(request.prompt_ids) - 1 :], answer, strict=False):
            assert row[token] > row.max() - 1e-4
            assert abs(logprobs.logprob - row[token]) < 1e-4
