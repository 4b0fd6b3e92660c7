"""Sampling, compared with transformers' logits processors and with a reference implementation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from puna.engine import Sampling
from puna.engine.sampling import Sampler
from puna.errors import BackendError, RequestError
from puna.native.library import machine
from tests.engine.reference_sampling import ReferenceSampler


def frequencies(sampling: Sampling, logits: np.ndarray, count: int = 4000, prompt: tuple[int, ...] = ()) -> np.ndarray:
    """Returns the relative frequency of each token over many draws."""
    sampler = Sampler(sampling, prompt, len(logits))
    tokens = []
    for _ in range(count):
        sampler.seen[:] = False
        sampler.seen[list(prompt)] = True
        tokens.append(sampler.choose(logits))
    return np.bincount(tokens, minlength=len(logits)) / count


def transformers_distribution(sampling: Sampling, logits: np.ndarray, prompt: tuple[int, ...] = ()) -> np.ndarray:
    """Returns the distribution that transformers' logits processors compute."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as reference

    steps = []
    if sampling.repetition_penalty != 1:
        steps.append(reference.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(reference.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(reference.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(reference.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(reference.MinPLogitsWarper(sampling.min_p))
    scores = torch.from_numpy(logits)[None].clone()
    for step in steps:
        scores = step(torch.tensor([list(prompt)], dtype=torch.long), scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.5, seed=2),
        Sampling(temperature=1.3, top_k=3, seed=3),
        Sampling(temperature=1.0, top_p=0.6, seed=4),
        Sampling(temperature=0.9, top_k=6, top_p=0.8, min_p=0.1, seed=5),
        Sampling(temperature=1.0, min_p=0.25, seed=6),
        Sampling(temperature=1.0, repetition_penalty=1.7, seed=7),
    ],
    ids=lambda s: f"t{s.temperature}k{s.top_k}p{s.top_p}m{s.min_p}r{s.repetition_penalty}",
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(sampling):
    logits = np.random.default_rng(0).normal(0, 2, 12).astype(np.float32)
    prompt = (0, 3, 3, 8)
    exact, measured = transformers_distribution(sampling, logits, prompt), frequencies(sampling, logits, prompt=prompt)
    assert set(np.flatnonzero(measured)) <= set(np.flatnonzero(exact > 0))
    # A frequency over 4,000 draws has a standard deviation of at most 0.0079. It deviates by more than 4.5 standard
    # deviations (0.036) about once in 100,000 times.
    assert np.abs(measured - exact).max() < 0.036


def test_temperature_zero_chooses_the_most_likely_token():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert Sampler(Sampling(), (), 3).choose(logits) == 1
    assert Sampler(Sampling(temperature=1e-30, seed=0), (), 3).choose(logits) == 1
    assert Sampler(Sampling(repetition_penalty=2.0), (1,), 3).choose(logits) == 2


def test_samplers_with_the_same_seed_draw_the_same_tokens():
    logits = np.zeros(50, np.float32)
    first, second = (Sampler(Sampling(temperature=1.0, seed=7), (), 50) for _ in range(2))
    tokens = [first.choose(logits) for _ in range(20)]
    assert [second.choose(logits) for _ in range(20)] == tokens
    assert len(set(tokens)) > 5


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"seed": -3}, "seed is -3"),
    ],
)
def test_errors_name_the_option_and_its_value(fields, words):
    with pytest.raises(RequestError, match=words):
        Sampling(**fields)


@pytest.fixture(params=machine().kernels)
def kernels(request, monkeypatch):
    """Runs the test with the kernels of each instruction set that this machine supports."""
    monkeypatch.setenv("PUNA_KERNELS", request.param)


@pytest.mark.slow
def test_native_sampling_equals_the_reference_implementation(kernels):
    """Thousands of random cases. Tokens may differ only where float32 rounding changes the result of a draw."""
    random = np.random.default_rng(9)
    differences = 0
    for case in range(3000):
        vocab = int(random.choice([1, 2, 5, 60, 700, 4000]))
        logits = random.normal(0, random.choice([0.01, 1, 5, 40]), vocab).astype(np.float32)
        if case % 7 == 0:
            logits = np.round(logits)  # ties
        if case % 50 == 0:
            logits[:] = 3.0
        sampling = Sampling(
            temperature=float(random.choice([0, 1e-30, 0.3, 1.0, 4.0])),
            top_k=int(random.choice([0, 1, 5, 40, 1000])),
            top_p=float(random.choice([1.0, 0.95, 0.5, 0.01, 0.0])),
            min_p=float(random.choice([0.0, 0.0, 0.1, 1.0])),
            repetition_penalty=float(random.choice([1.0, 1.3, 0.7])),
            seed=case,
        )
        prompt = tuple(random.integers(0, vocab, 3).tolist())
        native, reference = Sampler(sampling, prompt, vocab), ReferenceSampler(sampling, prompt, vocab)
        for _ in range(3):
            differences += native.choose(logits) != reference.choose(logits)
            reference.seen[:] = native.seen
    assert differences <= 9  # of 9,000 draws


@pytest.mark.parametrize("temperature", [1.0, 1e5, 1e8, 1e12])
def test_top_k_keeps_the_k_highest_logits_at_any_temperature(temperature, kernels):
    """At a high temperature different logits have equal weights; top-k still compares the logits."""
    logits = np.random.default_rng(3).normal(0, 4, 32_000).astype(np.float32)
    best = set(np.argsort(logits)[-40:].tolist())
    sampler = Sampler(Sampling(temperature=temperature, top_k=40, seed=5), (1,), len(logits))
    tokens = {sampler.choose(logits) for _ in range(300)}
    assert tokens <= best and len(tokens) > (10 if temperature > 1 else 5)


def test_extreme_numbers_still_draw_a_token():
    """A penalty below 1 makes large logits infinite; the inverse of a huge temperature is 0."""
    logits = np.array([3e38, -3e38, 1.0], np.float32)
    for temperature in (1e-30, 1.0, 1e300):
        for filters in ({"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.5}, {}):
            sampling = Sampling(temperature=temperature, repetition_penalty=0.1, seed=1, **filters)
            assert Sampler(sampling, (0, 1), 3).choose(logits) in ((0,) if temperature < 1e300 else (0, 1, 2))


def test_logits_that_are_not_finite_are_an_error(kernels):
    for size, token in ((3, 1), (200, 0), (200, 77), (200, 199)):
        for value in (np.nan, np.inf, -np.inf):
            for penalty in (1.0, 1.5):
                logits = np.arange(size, dtype=np.float32)
                logits[token] = value
                with pytest.raises(BackendError, match="not finite"):
                    Sampler(Sampling(repetition_penalty=penalty), (0, token), size).choose(logits)
