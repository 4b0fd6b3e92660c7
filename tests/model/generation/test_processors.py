"""Logits processors and warpers compared with those of transformers on random scores; recorded values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as reference

import puna
from puna.errors import PunaError

ROWS, TOKENS, VOCABULARY = 5, 12, 40
ENDS = [2, 7]


def make_scores(kind: str) -> Tensor:
    """Returns scores with ties, forbidden tokens, or rows that are almost or completely forbidden."""
    torch.manual_seed(0)
    scores = torch.randn(ROWS, VOCABULARY) * 4
    if kind == "ties":
        return scores.round()
    if kind == "forbidden":
        return scores.masked_fill(torch.rand(ROWS, VOCABULARY) < 0.3, float("-inf"))
    if kind == "rows":
        scores[1, 1:] = float("-inf")
        scores[3] = float("-inf")
        scores[4] = 0
    if kind == "invalid":
        scores[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    return scores


def make_ids(tokens: int = TOKENS) -> Tensor:
    """Returns ids with many repetitions."""
    return torch.randint(0, 4, (ROWS, tokens), generator=torch.Generator().manual_seed(1))


IDS = make_ids()
PROMPTS = torch.randint(0, VOCABULARY, (ROWS, 6), generator=torch.Generator().manual_seed(2))
NGRAM_BIASES = {(3,): 1.5, (1, 2): -2.5, (0, 2): 0.5, (2, 1, 3): float("-inf"), (0, 1, 2, 3): 4.0, (9,): float("-inf")}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("MinLength", {"min_length": 13, "eos_token_id": 2}),
    ("MinLength", {"min_length": 12, "eos_token_id": ENDS}),
    ("MinLength", {"min_length": 20, "eos_token_id": torch.tensor(ENDS)}),
    ("MinNewTokensLength", {"prompt_length_to_skip": 8, "min_new_tokens": 5, "eos_token_id": ENDS}),
    ("MinNewTokensLength", {"prompt_length_to_skip": 8, "min_new_tokens": 4, "eos_token_id": ENDS}),
    *[("RepetitionPenalty", {"penalty": value}) for value in (1.3, 0.6)],
    ("RepetitionPenalty", {"penalty": 1.3, "prompt_ignore_length": 10}),
    ("RepetitionPenalty", {"penalty": 1.3, "prompt_ignore_length": torch.tensor([0, 3, 11, 12, 5])}),
    *[("EncoderRepetitionPenalty", {"penalty": value, "encoder_input_ids": PROMPTS}) for value in (1.3, 0.6)],
    ("EncoderRepetitionPenalty", {"penalty": 1.3, "encoder_input_ids": PROMPTS[:1]}),
    *[("NoRepeatNGram", {"ngram_size": size}) for size in (1, 2, 3, 4, 12, 13, 14)],
    *[
        ("EncoderNoRepeatNGram", {"encoder_ngram_size": size, "encoder_input_ids": ids})
        for size in (1, 2, 3)
        for ids in (make_ids(9), IDS[0], IDS[:1])
    ],
    ("SequenceBias", {"sequence_bias": NGRAM_BIASES}),
    ("SequenceBias", {"sequence_bias": [[[3], 1.5], [[1, 2], -2.5]]}),
    ("SequenceBias", {"sequence_bias": {tuple(range(20)): 3.0, (1, 2): 1.0}}),
    ("NoBadWords", {"bad_words_ids": [[3], [2], [1, 2], [1, 3], [2, 2]], "eos_token_id": ENDS}),
    ("NoBadWords", {"bad_words_ids": [[3], [0, 1]], "eos_token_id": None}),
    ("NoBadWords", {"bad_words_ids": [[2]], "eos_token_id": 2}),
    ("PrefixConstrained", {"prefix_allowed_tokens_fn": lambda row, ids: [row, int(ids[-1]) + 9], "num_beams": 1}),
    ("PrefixConstrained", {"prefix_allowed_tokens_fn": lambda row, ids: [3 * row + 1], "num_beams": 5}),
    ("ForcedBOSToken", {"bos_token_id": 1}),
    ("ForcedEOSToken", {"max_length": 13, "eos_token_id": 2}),
    ("ForcedEOSToken", {"max_length": 13, "eos_token_id": ENDS}),
    ("ForcedEOSToken", {"max_length": 14, "eos_token_id": 2}),
    ("InfNanRemove", {}),
    *[
        ("ExponentialDecayLengthPenalty", {"exponential_decay_length_penalty": decay, "eos_token_id": ends,
                                           "input_ids_seq_length": length})
        for decay, ends, length in [((2, 1.1), 2, 7), ((3, 1.5), ENDS, 9), ((4, 1.5), ENDS, 9), ((0, 0.5), ENDS, 4)]
    ],
    ("LogitNormalization", {}),
    ("SuppressTokens", {"suppress_tokens": [3, 39, 41]}),
    ("SuppressTokensAtBegin", {"begin_suppress_tokens": [3, 5], "begin_index": 12}),
    ("SuppressTokensAtBegin", {"begin_suppress_tokens": [3, 5], "begin_index": 11}),
    *[("Temperature", {"temperature": value}) for value in (0.3, 1.0, 2.5)],
    *[("TopK", {"top_k": k, "min_tokens_to_keep": keep}) for k, keep in [(1, 1), (3, 5), (10, 1), (40, 1), (99, 1)]],
    *[("TopP", {"top_p": p, "min_tokens_to_keep": keep}) for p in (0.0, 0.3, 0.9, 1) for keep in (1, 3)],
    *[("MinP", {"min_p": p, "min_tokens_to_keep": keep}) for p in (0, 0.05, 0.7, 1.0) for keep in (1, 3, 99)],
    *[("TopH", {"top_h": value}) for value in (0.01, 0.4, 0.9, 1)],
    *[("Typical", {"mass": mass, "min_tokens_to_keep": keep}) for mass in (0.05, 0.5, 0.95) for keep in (1, 3)],
    *[("Epsilon", {"epsilon": value, "min_tokens_to_keep": keep}) for value in (1e-4, 0.02, 0.9) for keep in (1, 3)],
    *[("Eta", {"epsilon": value, "min_tokens_to_keep": keep}) for value in (1e-4, 0.02, 0.9) for keep in (1, 3)],
    ("TopP", {"top_p": 0.5, "filter_value": -1e4}),
    ("TopK", {"top_k": 2, "filter_value": -1e4}),
]  # fmt: skip


def class_name(short: str) -> str:
    """Returns the name of a class; all but one end in LogitsProcessor or LogitsWarper."""
    names = [short, f"{short}LogitsProcessor", f"{short}LogitsWarper"]
    return next(name for name in names if hasattr(reference, name))


def kinds_of(name: str) -> list[str]:
    """Returns the kinds of scores for a class; two of transformers raise an error for a row without a valid score."""
    return ["random", "ties", "forbidden", *(() if name in ("TopH", "Eta") else ("rows", "invalid"))]


@pytest.mark.parametrize(("name", "arguments", "kind"), [(*case, kind) for case in CASES for kind in kinds_of(case[0])])
def test_scores_equal_those_of_transformers(name: str, arguments: dict[str, Any], kind: str) -> None:
    name = class_name(name)
    for tokens in (TOKENS, 1):
        ids, scores = IDS[:, :tokens], make_scores(kind)
        if tokens == 1 and isinstance(arguments.get("prompt_ignore_length"), Tensor):
            continue
        expected = getattr(reference, name)(**arguments)(ids, scores.clone())
        result = getattr(puna, name)(**arguments)(ids, scores)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(scores.nan_to_num(), make_scores(kind).nan_to_num()), "the scores were modified"


@pytest.mark.parametrize("name", ["TopH", "Eta"])
def test_entropy_filters_keep_a_row_without_a_valid_score(name: str) -> None:
    scores = make_scores("rows")
    result = getattr(puna, f"{name}LogitsWarper")(0.5)(IDS, scores)
    assert torch.equal(result[3], scores[3])
    valid = [0, 1, 2, 4]
    expected = getattr(reference, f"{name}LogitsWarper")(0.5)(IDS[valid], scores[valid])
    torch.testing.assert_close(result[valid], expected, rtol=0, atol=0)


def test_ids_outside_the_vocabulary_have_no_effect() -> None:
    scores, ids = make_scores("random"), torch.tensor([[1, 2, 50, 1, 2]]).expand(ROWS, -1)
    for name, arguments in (("RepetitionPenalty", {"penalty": 1.7}), ("NoRepeatNGram", {"ngram_size": 3})):
        result = getattr(puna, f"{name}LogitsProcessor")(**arguments)(ids, scores)
        assert torch.equal(result, getattr(reference, f"{name}LogitsProcessor")(**arguments)(ids, scores.clone()))


INVALID: list[tuple[str, dict[str, Any]]] = [
    *[("MinLength", {"min_length": value, "eos_token_id": 2}) for value in (-1, 1.5, None)],
    ("MinNewTokensLength", {"prompt_length_to_skip": -1, "min_new_tokens": 1, "eos_token_id": 2}),
    ("MinNewTokensLength", {"prompt_length_to_skip": 1, "min_new_tokens": -1, "eos_token_id": 2}),
    *[("Temperature", {"temperature": value}) for value in (0.0, -1.0, 2, "1", None, float("nan"))],
    *[("RepetitionPenalty", {"penalty": value}) for value in (0.0, -1.0, 2, None)],
    *[("RepetitionPenalty", {"penalty": 1.5, "prompt_ignore_length": n}) for n in (-1, torch.tensor([[1]]))],
    *[("EncoderRepetitionPenalty", {"penalty": v, "encoder_input_ids": PROMPTS}) for v in (0.0, 2)],
    *[("TopP", {"top_p": value}) for value in (-0.1, 1.1, "a")],
    *[("TopK", {"top_k": value}) for value in (0, -1, 1.0, None)],
    *[("MinP", {"min_p": value}) for value in (-0.1, 1.1)],
    *[("TopH", {"top_h": value}) for value in (0, -0.1, 1.1)],
    *[("Typical", {"mass": value}) for value in (0, 1, -1, 2)],
    *[("Epsilon", {"epsilon": value}) for value in (0, 1, -1, 2)],
    *[("Eta", {"epsilon": value}) for value in (0, 1, -1, 2)],
    *[(name, {argument: 0.5, "min_tokens_to_keep": keep}) for name, argument in
      (("TopP", "top_p"), ("MinP", "min_p"), ("Typical", "mass"), ("Epsilon", "epsilon"), ("Eta", "epsilon"))
      for keep in (0, -1)],
    *[(name, {argument: 0.5, "min_tokens_to_keep": 1.5}) for name, argument in
      (("TopP", "top_p"), ("MinP", "min_p"), ("Typical", "mass"))],
    *[("NoRepeatNGram", {"ngram_size": value}) for value in (0, -1, 2.0)],
    *[("EncoderNoRepeatNGram", {"encoder_ngram_size": v, "encoder_input_ids": PROMPTS}) for v in (0, 1.5)],
    *[("SequenceBias", {"sequence_bias": value}) for value in (
        {}, [], 3, {1: 1.0}, {(): 1.0}, {(-1,): 1.0}, {(1,): 2}, {("a",): 1.0}, [[[1, 2], 3]], [[[-1], 1.0]])],
    *[("NoBadWords", {"bad_words_ids": value, "eos_token_id": 2}) for value in (
        [], {}, [3], [[-1]], [[1.5]], [(1, 2)])],
    *[("ForcedEOSToken", {"max_length": 5, "eos_token_id": value}) for value in (-1, [1.5], [2, -1])],
    ("ExponentialDecayLengthPenalty",
     {"exponential_decay_length_penalty": (1, 1.1), "eos_token_id": -2, "input_ids_seq_length": 1}),
    *[("ClassifierFreeGuidance", {"guidance_scale": value}) for value in (1, 0.5)],
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), INVALID)
def test_arguments_that_transformers_refuses_are_errors(name: str, arguments: dict[str, Any]) -> None:
    name = class_name(name)
    with pytest.raises((ValueError, TypeError)):
        getattr(reference, name)(**arguments)
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(puna, name)(**arguments)
    assert isinstance(caught.value, PunaError) or "a" in arguments.values()


def test_top_p_at_an_exact_boundary_equals_transformers() -> None:
    logits = torch.tensor([[1.0, 1, 1, 1], [0, 0, -1e4, -1e4]])  # probabilities of exactly 1/4 and 1/2
    for p in (0.25, 0.5, 0.75):
        assert torch.equal(puna.TopPLogitsWarper(p)(IDS, logits), reference.TopPLogitsWarper(p)(IDS, logits))


@pytest.mark.parametrize(("k", "p", "keep"), [(0, 1.0, 1), (5, 0.7, 1), (2, 0.1, 4), (0, 0.5, 1), (3, 2.0, 1)])
def test_top_k_top_p_filtering_applies_both_filters(k: int, p: float, keep: int) -> None:
    expected = make_scores("random")
    if k:
        expected = reference.TopKLogitsWarper(k, -9.0, keep)(IDS, expected)
    if p <= 1:
        expected = reference.TopPLogitsWarper(p, -9.0, keep)(IDS, expected)
    assert torch.equal(puna.top_k_top_p_filtering(make_scores("random"), k, p, -9.0, keep), expected)
