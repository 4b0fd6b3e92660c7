"""`generate()` with options that change the scores, compared with transformers: tokens and scores of each step."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers.generation import candidate_generator

import puna
from puna.errors import PunaError
from puna.model import LlamaForCausalLM
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair, ragged

VOCABULARY = 67
SEQUENCES = {(5,): 2.5, (11, 12): -4.0, **{(i, (7 * i) % VOCABULARY): 3.0 for i in range(3, 60)}}
OPTIONS: list[dict[str, Any]] = [
    {"min_length": 20, "eos_token_id": list(range(30))},
    {"min_new_tokens": 4, "eos_token_id": list(range(30))},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 0.6},
    {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 0.7},
    {"encoder_repetition_penalty": 1.8},
    {"bad_words_ids": [[2], *([i] for i in range(20)), *([i, j] for i in range(20, 40) for j in range(20, 40))]},
    {"sequence_bias": SEQUENCES, "renormalize_logits": True},
    {"sequence_bias": [[list(ids), bias] for ids, bias in SEQUENCES.items()]},
    {"suppress_tokens": list(range(0, 60, 2)), "begin_suppress_tokens": list(range(1, 60, 3))},
    {"forced_eos_token_id": 9},
    {"forced_eos_token_id": [9, 10], "remove_invalid_values": True},
    {"exponential_decay_length_penalty": (2, 1.6), "eos_token_id": 9},
    {"exponential_decay_length_penalty": [0, 1.3], "eos_token_id": [9, 10], "min_new_tokens": 6},
    {"prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) * 5 + row + k) % VOCABULARY for k in range(4)]},
    {"guidance_scale": 1.7},
    {"guidance_scale": 3.0, "use_cache": False, "renormalize_logits": True},
    {"watermarking_config": {"bias": 4.0, "seeding_scheme": "selfhash"}},
    {"do_sample": True, "typical_p": 0.4},
    {"do_sample": True, "top_k": 0, "epsilon_cutoff": 0.02, "temperature": 1.4},
    {"do_sample": True, "top_k": 0, "eta_cutoff": 0.02, "renormalize_logits": True},
    {"do_sample": True, "top_h": 0.5, "min_p": 0.01},
    {"do_sample": True, "top_p": 0.9, "typical_p": 0.9, "num_return_sequences": 3, "no_repeat_ngram_size": 2},
    {"do_sample": True, "watermarking_config": {"bias": 4.0}, "guidance_scale": 0.5, "repetition_penalty": 1.4},
]


@pytest.fixture(scope="module")
def models_pair() -> tuple[LlamaForCausalLM, Any]:
    return pair(config_of(num_key_value_heads=2, initializer_range=0.12), seed=4)


def outputs(models_pair: tuple[LlamaForCausalLM, Any], ids: Tensor, **options: Any) -> list[Any]:
    """Returns the outputs of both models, after the same seed."""
    results = []
    for model in models_pair:
        torch.manual_seed(11)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(
                model.generate(
                    ids, **{"max_new_tokens": 14, "pad_token_id": 0, **options}, return_dict_in_generate=True,
                    output_scores=True, output_logits=True,
                )
            )  # fmt: skip
    return results


def same_outputs(result: Any, expected: Any) -> None:
    assert torch.equal(result.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for ours, reference in zip(getattr(result, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS)
def test_tokens_and_scores_equal_those_of_transformers(
    models_pair: tuple[LlamaForCausalLM, Any], options: dict[str, Any]
) -> None:
    ids, mask, _ = ragged(models_pair[0].config, (9, 14, 5), "left")
    same_outputs(*outputs(models_pair, ids, attention_mask=mask, **options))
    plain = models_pair[0].generate(ids, attention_mask=mask, max_new_tokens=14, pad_token_id=0)
    if not options.get("do_sample"):
        changed = outputs(models_pair, ids, attention_mask=mask, **options)[0].sequences
        assert changed.shape != plain.shape or not torch.equal(changed, plain), "the option has an effect"


OVERFLOW: dict[str, Any] = {
    "min_new_tokens": 5, "remove_invalid_values": True, "exponential_decay_length_penalty": (0, 3.0), "eos_token_id": 9
}  # fmt: skip


def test_a_penalty_that_overflows_still_chooses_a_token(models_pair: tuple[LlamaForCausalLM, Any]) -> None:
    ids = torch.tensor([[1, 5, 6], [9, 8, 7]])
    result, expected = outputs(models_pair, ids, **OVERFLOW)
    assert torch.equal(result.sequences, expected.sequences)
    with pytest.raises(PunaError, match="the largest logit of row 0 is inf"):
        models_pair[0].generate(ids, do_sample=True, max_new_tokens=14, **OVERFLOW)


def test_scores_without_a_token_to_choose_are_errors(models_pair: tuple[LlamaForCausalLM, Any]) -> None:
    def forbid_all(ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, float("-inf")) if ids.shape[1] > 4 else scores

    def end_first_row(ids: Tensor, scores: Any, **others: Any) -> Tensor:
        return torch.tensor([ids.shape[1] > 4, False])

    ids = torch.tensor([[1, 5, 6], [9, 8, 7]])
    for value in ("-inf", "inf", "nan"):
        change = lambda ids, scores: scores.index_fill(1, torch.arange(67), float(value))  # noqa: B023, E731
        with pytest.raises(PunaError, match=f"the largest logit of row 0 is {value}"):
            models_pair[0].generate(ids, logits_processor=[change], do_sample=value == "inf", max_new_tokens=3)
    with pytest.raises(PunaError, match="the largest logit of row 1 is -inf"):
        models_pair[0].generate(ids, logits_processor=[forbid_all], stopping_criteria=[end_first_row], max_new_tokens=3)


@pytest.mark.parametrize("scale", [1.7, 0.3])
def test_negative_prompts_equal_those_of_transformers(models_pair: tuple[LlamaForCausalLM, Any], scale: float) -> None:
    ids, mask, _ = ragged(models_pair[0].config, (9, 14), "left")
    negative, negative_mask, _ = ragged(models_pair[0].config, (4, 7), "left", seed=9)
    options = {"attention_mask": mask, "negative_prompt_ids": negative, "negative_prompt_attention_mask": negative_mask}
    same_outputs(*outputs(models_pair, ids, guidance_scale=scale, **options))


def test_a_forced_first_token_follows_a_prompt_of_one_token(models_pair: tuple[LlamaForCausalLM, Any]) -> None:
    result, expected = outputs(models_pair, torch.tensor([[1]]), forced_bos_token_id=30, begin_suppress_tokens=[4, 30])
    same_outputs(result, expected)
    assert result.sequences[0, 1] == 30


def test_forced_tokens_are_generated_at_their_positions(models_pair: tuple[LlamaForCausalLM, Any]) -> None:
    result = models_pair[0].generate(torch.tensor([[1, 5, 6]]), max_new_tokens=3, forced_decoder_ids=[[3, 9], [5, 8]])
    assert result[0, 3] == 9 and result[0, 5] == 8  # recorded from transformers 4.34.1


def test_objects_of_the_caller_and_of_transformers_are_used(models_pair: tuple[LlamaForCausalLM, Any]) -> None:
    ids = torch.tensor([[1, 5, 6], [9, 8, 7]])
    for module in (puna, transformers):
        processors = module.LogitsProcessorList(
            [module.RepetitionPenaltyLogitsProcessor(1.5), lambda ids, scores: scores - 2 * (scores > 1)]
        )
        criteria = module.StoppingCriteriaList(
            [module.MaxLengthCriteria(9), lambda ids, scores, **others: ids[:, -1] % 5 == 0]
        )
        same_outputs(*outputs(models_pair, ids, logits_processor=processors, stopping_criteria=criteria))


def test_stop_strings_end_rows_as_in_transformers(models_pair: tuple[LlamaForCausalLM, Any]) -> None:
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{a}{b}" for a in "abcdef" for b in "ghijkl")]
    merges = [tuple(token) for token in letters if len(token) == 2]
    library = Tokenizer(models.BPE({token: i + 3 for i, token in enumerate(letters)}, merges))
    library.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    ids, lengths = torch.tensor([[1, 5, 6], [9, 8, 7]]), set()
    for strings in ("a", ["ga", "hb"], random.Random(0).choices(letters, k=20)):
        result, expected = outputs(models_pair, ids, stop_strings=strings, tokenizer=tokenizer)
        same_outputs(result, expected)
        lengths.add(result.sequences.shape[1])
    assert len(lengths) > 1


FILTERS: list[dict[str, Any]] = [
    {"typical_p": 0.8}, {"top_k": 0, "top_p": 0.8}, {"top_h": 0.8, "repetition_penalty": 1.3}, {"temperature": 0.5},
    {"min_p": 0.05, "eta_cutoff": 0.01, "renormalize_logits": True, "suppress_tokens": [5, 6]},
]  # fmt: skip


@pytest.mark.parametrize("options", FILTERS)
def test_sampled_drafts_lead_to_the_tokens_of_transformers(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where scikit-learn is installed, transformers changes the confidence threshold as it generates.
    monkeypatch.setattr(candidate_generator, "is_sklearn_available", lambda: False)
    main, draft = (
        pair(config_of(num_key_value_heads=2, initializer_range=0.15, num_hidden_layers=layers), seed=8)
        for layers in (2, 1)
    )
    compared = 0
    for seed in range(5):
        results: list[Tensor] = []
        for model, assistant in zip(main, draft, strict=True):
            torch.manual_seed(seed)
            common = {"do_sample": True, "max_new_tokens": 12, "pad_token_id": 66, **options}
            ids = torch.tensor([[1, 5, 6, 7]])
            mask = torch.ones_like(ids)
            results.append(model.generate(ids, attention_mask=mask, assistant_model=assistant, **common))
        if 66 not in results[1]:  # the assistant of transformers reads a generated pad token as padding
            assert torch.equal(*results)
            compared += 1
    assert compared >= 3
