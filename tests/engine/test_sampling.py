"""Sampling, compared with transformers' logits processors and with a reference implementation in NumPy."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from puna.config import SamplingOptions
from puna.engine import Sampling
from puna.engine.sampling import Sampler, choose
from puna.errors import BackendError, RequestError
from puna.native.library import machine
from puna.native.sampling import logprobs_of
from tests.engine.reference_sampling import ReferenceSampler
from tests.helpers.properties import FACTOR

END = 1
"""The id that ends answers in these tests."""


def draw(sampler: Sampler, logits: np.ndarray) -> int:
    """Chooses and records one token; raises the error of the row."""
    (choice,) = choose([sampler], logits[None], [0])
    if choice.error is not None:
        raise choice.error
    sampler.commit(choice.token)
    return choice.token


def frequencies(sampling: Sampling, logits: np.ndarray, prompt: tuple[int, ...], count: int = 4000) -> np.ndarray:
    """Returns the relative frequency of each token over many draws."""
    samplers = [Sampler(replace(sampling, seed=sampling.seed * count + i), prompt, len(logits)) for i in range(count)]
    tokens = [choice.token for choice in choose(samplers, logits[None], [0] * count)]
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
    if sampling.typical_p < 1:
        steps.append(reference.TypicalLogitsWarper(sampling.typical_p))
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
        Sampling(temperature=1.0, typical_p=0.5, seed=8),
        Sampling(temperature=1.4, top_k=9, min_p=0.05, typical_p=0.2, seed=9),
    ],
    ids=lambda s: f"t{s.temperature}k{s.top_k}p{s.top_p}m{s.min_p}y{s.typical_p}r{s.repetition_penalty}",
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(sampling):
    logits = np.random.default_rng(0).normal(0, 2, 12).astype(np.float32)
    prompt = (0, 3, 3, 8)
    exact, measured = transformers_distribution(sampling, logits, prompt), frequencies(sampling, logits, prompt)
    assert set(np.flatnonzero(measured)) <= set(np.flatnonzero(exact > 0))
    # A frequency over 4,000 draws has a standard deviation of at most 0.0079. It deviates by more than 4.5 standard
    # deviations (0.036) about once in 100,000 times.
    assert np.abs(measured - exact).max() < 0.036


def test_temperature_zero_chooses_the_most_likely_token():
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    assert draw(Sampler(Sampling(), (), 3), logits) == 1
    assert draw(Sampler(Sampling(temperature=1e-30, seed=0), (), 3), logits) == 1
    assert draw(Sampler(Sampling(repetition_penalty=2.0), (1,), 3), logits) == 2


def test_samplers_with_the_same_seed_draw_the_same_tokens():
    logits = np.zeros(50, np.float32)
    first, second = (Sampler(Sampling(temperature=1.0, seed=7), (), 50) for _ in range(2))
    tokens = [draw(first, logits) for _ in range(20)]
    assert [draw(second, logits) for _ in range(20)] == tokens
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
        ({"typical_p": 0}, "typical_p is 0"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"presence_penalty": "2"}, "presence_penalty is '2'"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101; it must be a number from -100 to 100"),
        ({"logit_bias": {"5": 1}}, "a token id of logit_bias is '5'"),
        ({"logit_bias": [5]}, r"logit_bias is \[5\]"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": 3}, "allowed_token_ids is 3"),
        ({"stop_token_ids": [1, -1]}, "a token id of stop_token_ids is -1"),
        ({"ignore_eos": 1}, "ignore_eos is 1"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"logprobs": 21}, "logprobs is 21; it must be a whole number, 0 or more, at most 20"),
    ],
)
def test_errors_name_the_option_and_its_value(fields, words):
    with pytest.raises(RequestError, match=words):
        Sampling(**fields)


@pytest.fixture(params=machine().kernels)
def kernels(request, monkeypatch):
    """Runs the test with the kernels of each instruction set that this machine supports."""
    monkeypatch.setenv("PUNA_KERNELS", request.param)


def random_sampling(random: np.random.Generator, vocab: int, seed: int) -> Sampling:
    """Returns a random combination of options."""
    ids = random.permutation(vocab)
    others = ids[ids != END].tolist()
    return Sampling(
        temperature=float(random.choice([0, 1e-30, 0.3, 1.0, 1.0, 4.0])),
        top_k=int(random.choice([0, 0, 1, 5, 40, 1000])),
        top_p=float(random.choice([1.0, 1.0, 0.95, 0.5, 0.01, 0.0])),
        min_p=float(random.choice([0.0, 0.0, 0.1, 1.0])),
        typical_p=float(random.choice([1.0, 1.0, 0.9, 0.3, 0.01])),
        repetition_penalty=float(random.choice([1.0, 1.3, 0.7])),
        presence_penalty=float(random.choice([0.0, 0.5, -1.0])),
        frequency_penalty=float(random.choice([0.0, 0.0, 0.4, -0.3])),
        logit_bias=dict(zip(others[:3], random.uniform(-3, 3, 3).tolist(), strict=False))
        if random.random() < 0.3
        else {},
        allowed_token_ids=tuple(others[: vocab // 2 + 1]) if others and random.random() < 0.3 else None,
        min_tokens=int(random.choice([0, 2])) if others else 0,
        seed=seed,
    )


def random_logits(random: np.random.Generator, case: int) -> np.ndarray:
    """Returns logits of a random vocabulary; some have ties."""
    vocab = int(random.choice([1, 2, 5, 60, 700, 4000]))
    logits = random.normal(0, random.choice([0.01, 1, 5, 40]), vocab).astype(np.float32)
    if case % 7 == 0:
        logits = np.round(logits)
    if case % 50 == 0:
        logits[:] = 3.0
    return logits


def torch_token(reference: ReferenceSampler, logits: np.ndarray) -> int:
    """Returns the token that PyTorch chooses in the state of a reference sampler."""
    import torch

    from puna.model.draw import draw

    tensors = (torch.from_numpy(array)[None] for array in (logits, reference.seen, reference.generated))
    values, seen, generated = tensors
    uniform = torch.tensor([reference.uniform], dtype=torch.float64)
    allowed = torch.from_numpy(reference.allowed())[None]
    return int(draw(values, reference.sampling, seen, generated, uniform, allowed))


def compare_implementations(cases: int, seed: int, *, with_torch: bool) -> tuple[int, int]:
    """Compares up to three choices of each case with the reference implementation.

    Returns the number of choices and the number of close ones, where rounding may change the token.
    """
    random = np.random.default_rng(seed)
    choices = close = 0
    for case in range(cases):
        logits = random_logits(random, case)
        sampling = random_sampling(random, len(logits), case)
        prompt = tuple(random.integers(0, len(logits), 3).tolist())
        ends = (END,) if len(logits) > 1 else ()
        sampler = Sampler(sampling, prompt, len(logits), ends)
        reference = ReferenceSampler(sampling, prompt, len(logits), ends)
        for _ in range(3):
            expected = reference.choose(logits)
            token = torch_token(reference, logits) if with_torch else draw(sampler, logits)
            assert token == expected or reference.close, (case, sampling, token, expected)
            choices, close = choices + 1, close + reference.close
            if token != expected:
                break  # the sequences differ from here on
            reference.commit(token)
    return choices, close


@pytest.mark.slow
def test_native_sampling_equals_the_reference_implementation(kernels):
    cases = 1000 * FACTOR
    choices, close = compare_implementations(cases, 9, with_torch=False)
    assert choices > 2.96 * cases and close < 0.01 * choices


def test_pytorch_chooses_the_tokens_of_the_reference_implementation():
    pytest.importorskip("torch")
    choices, close = compare_implementations(500, 4, with_torch=True)
    assert choices > 1480 and close < 0.01 * choices


def test_native_sampling_equals_the_reference_implementation_in_some_cases():
    choices, close = compare_implementations(500, 4, with_torch=False)
    assert choices > 1480 and close < 0.01 * choices


@pytest.mark.parametrize("temperature", [1.0, 1e5, 1e8, 1e12])
def test_top_k_keeps_the_k_highest_logits_at_any_temperature(temperature, kernels):
    """At a high temperature different logits have equal weights; top-k still compares the logits."""
    logits = np.random.default_rng(3).normal(0, 4, 32_000).astype(np.float32)
    best = set(np.argsort(logits)[-40:].tolist())
    sampler = Sampler(Sampling(temperature=temperature, top_k=40, seed=5), (1,), len(logits))
    tokens = {draw(sampler, logits) for _ in range(300)}
    assert tokens <= best and len(tokens) > (10 if temperature > 1 else 5)


def test_extreme_numbers_still_draw_a_token():
    """A penalty below 1 makes large logits infinite; the inverse of a huge temperature is 0."""
    logits = np.array([3e38, -3e38, 1.0], np.float32)
    for temperature in (1e-30, 1.0, 1e300):
        for filters in ({"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.5}, {}):
            sampling = Sampling(temperature=temperature, repetition_penalty=0.1, seed=1, **filters)
            assert draw(Sampler(sampling, (0, 1), 3), logits) in ((0,) if temperature < 1e300 else (0, 1, 2))


def test_logits_that_are_not_finite_are_an_error(kernels):
    for size, token in ((3, 1), (200, 0), (200, 77), (200, 199)):
        for value in (np.nan, np.inf, -np.inf):
            for penalty in (1.0, 1.5):
                logits = np.arange(size, dtype=np.float32)
                logits[token] = value
                with pytest.raises(BackendError, match="not finite"):
                    draw(Sampler(Sampling(repetition_penalty=penalty), (0, token), size), logits)


def test_a_row_that_fails_does_not_affect_the_others():
    logits = np.zeros((3, 40), np.float32)
    logits[1, 5] = np.nan
    logits[2, 7] = 1
    samplers = [Sampler(Sampling(min_tokens=i), (), 40, (END,)) for i in range(3)]
    first, second, third = choose(samplers, logits, [0, 1, 2])
    assert (first.token, third.token) == (0, 7) and first.error is third.error is None
    assert isinstance(second.error, BackendError)


class FixedGrammar:
    """A state of a grammar that allows always the same tokens."""

    error, complete = None, False

    def __init__(self, words: list[int], accepts: bool = False) -> None:
        self.allowed = np.array(words, np.uint32)
        self.accepts = accepts

    def commit(self, token: int) -> None:
        pass


def test_having_no_allowed_token_is_an_error():
    sampler = Sampler(Sampling(min_tokens=1, allowed_token_ids=(END,)), (), 40, (END,))
    with pytest.raises(RequestError, match="no token may be chosen"):
        draw(sampler, np.zeros(40, np.float32))


def test_the_error_says_why_the_grammar_leaves_no_token():
    logits = np.zeros(40, np.float32)
    sampler = Sampler(Sampling(min_tokens=1), (), 40, (END,))
    sampler.grammar = FixedGrammar([1 << END, 0], accepts=True)
    with pytest.raises(RequestError, match=r"to end before it has min_tokens \(1\)"):
        draw(sampler, logits)
    sampler = Sampler(Sampling(allowed_token_ids=(3,)), (), 40)
    sampler.grammar = FixedGrammar([1 << 4, 0])
    with pytest.raises(RequestError, match="no token can continue the answer in its grammar"):
        draw(sampler, logits)
    sampler.grammar.error = "too many items"
    with pytest.raises(RequestError, match="cannot continue in its grammar: too many items"):
        draw(sampler, logits)


def test_a_row_has_the_same_result_in_every_batch():
    random = np.random.default_rng(5)
    logits = random.normal(0, 3, (20, 700)).astype(np.float32)
    options = [replace(random_sampling(random, 700, i), logprobs=i % 3 * 7) for i in range(20)]
    alone = [choose([Sampler(sampling, (i,), 700)], logits, [i])[0] for i, sampling in enumerate(options)]
    rows = random.permutation(20).tolist()
    together = choose([Sampler(options[row], (row,), 700) for row in rows], logits, rows)
    assert together == [alone[row] for row in rows]


def test_a_repeated_choice_uses_the_same_random_number():
    logits = np.zeros((1, 1000), np.float32)
    sampler, other = (Sampler(Sampling(temperature=1.0, seed=3), (), 1000) for _ in range(2))
    tokens = []
    for _ in range(5):
        choices = [choose([sampler], logits, [0])[0].token for _ in range(3)]
        assert len(set(choices)) == 1
        sampler.commit(choices[0])
        tokens.append(choices[0])
    assert tokens == [draw(other, logits[0]) for _ in range(5)]
    assert len(set(tokens)) > 1


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_logprobs_are_those_of_the_unchanged_logits(top, kernels):
    logits = np.random.default_rng(2).normal(0, 4, 3000).astype(np.float32)
    logits[[70, 2000]] = logits.max() + 1  # a tie
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    sampling = Sampling(temperature=0.5, top_k=3, logit_bias={70: -100.0, 9: 50.0}, logprobs=top, seed=1)
    (choice,) = choose([Sampler(sampling, (), 3000)], logits[None], [0])
    assert choice.logprobs.token == choice.token == 9
    np.testing.assert_allclose(choice.logprobs.logprob, expected[9], rtol=0, atol=1e-6)
    assert [token for token, _ in choice.logprobs.top] == np.argsort(-expected, kind="stable")[:top].tolist()
    np.testing.assert_allclose([value for _, value in choice.logprobs.top], np.sort(expected)[::-1][:top], atol=1e-6)


def test_logprobs_of_certain_tokens():
    logits = np.random.default_rng(6).normal(0, 2, (4, 50)).astype(np.float32)
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    result = logprobs_of(logits, [4, 0, 49, 7], 2)
    assert [item.token for item in result] == [4, 0, 49, 7]
    np.testing.assert_allclose([item.logprob for item in result], expected[range(4), [4, 0, 49, 7]], atol=1e-6)
    logits[2, 1] = np.inf
    with pytest.raises(BackendError, match="not finite"):
        logprobs_of(logits, [4, 0, 49, 7], 2)


def test_presence_penalty_applies_once_and_only_to_the_answer():
    logits = np.array([1.0, 0.9, 0.85, 0.0], np.float32)
    sampler = Sampler(Sampling(presence_penalty=0.12), (0, 0, 1), 4)
    # Token 0 falls to 0.88, so token 1 (0.9) is next and falls to 0.78. Then token 0 (0.88) wins every time, since it
    # is not penalised again.
    assert [draw(sampler, logits) for _ in range(4)] == [0, 1, 0, 0]


def test_frequency_penalty_grows_with_the_number_of_times_that_a_token_is_in_the_answer():
    logits = np.array([1.0, 0.9, 0.85, 0.0], np.float32)
    sampler = Sampler(Sampling(frequency_penalty=0.12), (0, 0, 1), 4)
    # Each choice lowers the chosen token's logit by 0.12. The highest logits at each step are 1 (token 0), 0.9 (1),
    # 0.88 (0), 0.85 (2), 0.78 (1), 0.76 (0).
    assert [draw(sampler, logits) for _ in range(6)] == [0, 1, 0, 2, 1, 0]


def test_logit_bias_is_added_before_the_temperature():
    logits = np.array([0.0, 1.0, 0.5], np.float32)
    assert draw(Sampler(Sampling(logit_bias={0: 1.5}), (), 3), logits) == 0
    assert draw(Sampler(Sampling(logit_bias={1: -100}), (), 3), logits) == 2
    measured = frequencies(Sampling(temperature=2.0, logit_bias={0: 2.0}, seed=1), logits, ())
    exact = np.exp(np.array([1.0, 0.5, 0.25]))
    assert np.abs(measured - exact / exact.sum()).max() < 0.036


def test_allowed_token_ids_and_the_grammar_limit_the_choice():
    logits = np.arange(40, dtype=np.float32)
    sampler = Sampler(Sampling(allowed_token_ids=(3, 33, 35)), (), 40)
    assert draw(sampler, logits) == 35
    sampler.grammar = FixedGrammar([0xFFFFFFFF, 0b0111])  # ids 0 to 34
    assert draw(sampler, logits) == 33
    sampler.grammar = FixedGrammar([0xFFFFFFFF, 0])
    assert draw(sampler, logits) == 3
    tokens = {
        draw(Sampler(Sampling(temperature=1e9, allowed_token_ids=(3, 33), seed=i), (), 40), logits) for i in range(99)
    }
    assert tokens == {3, 33}


def test_min_tokens_forbids_the_end_of_the_answer():
    logits = np.array([0.0, 5.0, 1.0, 4.0], np.float32)
    sampler = Sampler(Sampling(min_tokens=2), (), 4, (END, 3))
    assert [draw(sampler, logits) for _ in range(3)] == [2, 2, END]


def test_every_option_is_a_field_and_has_the_same_name():
    assert list(SamplingOptions.__annotations__) == [field.name for field in fields(Sampling)]
