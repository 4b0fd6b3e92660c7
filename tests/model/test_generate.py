"""`generate()`, compared with transformers with the same weights and random state, and its own rules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.generation import logits_process as their_processors

from puna.config import GenerationConfig
from puna.errors import PunaError
from puna.model import KVCache, LlamaForCausalLM
from puna.model.outputs import GenerateOutput
from puna.model.sampling import forbid, keep_min_p, keep_top_k, keep_top_p, penalise_repetition
from tests.helpers.configurations import CONFIGURATIONS, DYNAMIC, config_of
from tests.helpers.reference_models import distance, pair, ragged

IDS = torch.randint(3, 67, (2, 6), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def both() -> tuple[LlamaForCausalLM, Any]:
    # weights so small that eos occurs now and then, and draws differ
    return pair(config_of(num_key_value_heads=2, initializer_range=0.12), seed=4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_greedy_equals_the_references(name: str) -> None:
    ours, theirs = pair(config_of(**CONFIGURATIONS[name]), seed=5)
    ids, mask, _ = ragged(ours.config, (9, 14, 5), "left")
    settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 25, "pad_token_id": 0}
    result = ours.generate(ids, **settings)
    assert torch.equal(result, theirs.generate(ids, do_sample=False, **settings))
    assert torch.equal(result[:, :14], ids)
    assert torch.equal(result, ours.generate(ids, use_cache=False, **settings))


SAMPLING: list[dict[str, Any]] = [
    {"top_k": 0},
    {"temperature": 0.7, "top_k": 5},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": 0, "min_p": 0.2, "temperature": 1.8},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3, "repetition_penalty": 1.4},
    {"num_return_sequences": 3, "repetition_penalty": 0.8},
    {"min_new_tokens": 12, "eos_token_id": list(range(30))},
]


@pytest.mark.parametrize("settings", SAMPLING)
def test_sampling_draws_the_same_tokens_as_the_reference(
    both: tuple[LlamaForCausalLM, Any], settings: dict[str, Any]
) -> None:
    ours, theirs = both
    common = {"max_new_tokens": 20, "do_sample": True, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    torch.manual_seed(11)
    result = ours.generate(IDS, **common, **settings)
    torch.manual_seed(11)
    assert torch.equal(result, theirs.generate(IDS, **common, **settings))
    torch.manual_seed(12)
    assert not torch.equal(result, ours.generate(IDS, **common, **settings))


@pytest.mark.parametrize("value", [0.0, 0.05, 0.3, 0.9, 0.999])
def test_filters_equal_the_logits_processors_of_the_reference(value: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 40) * 3
    logits[0, :10] = logits[0, 10]  # ties
    ids = torch.randint(0, 40, (5, 12))
    p = their_processors
    assert torch.equal(keep_top_p(logits, value), p.TopPLogitsWarper(value)(ids, logits))
    assert torch.equal(keep_min_p(logits, value), p.MinPLogitsWarper(value)(ids, logits))
    for k in (1, 3, 10, 40, 100):
        assert torch.equal(keep_top_k(logits, k), p.TopKLogitsWarper(k)(ids, logits))
    penalty = p.RepetitionPenaltyLogitsProcessor(0.5 + value)
    assert torch.equal(penalise_repetition(logits, ids, 0.5 + value), penalty(ids, logits.clone()))
    assert torch.equal(forbid(logits, (3, 7)), p.SuppressTokensLogitsProcessor([3, 7])(ids, logits))


def test_top_p_at_an_exact_boundary_equals_the_reference() -> None:
    logits = torch.tensor([[1.0, 1, 1, 1], [0, 0, -1e4, -1e4]])  # probabilities of exactly 1/4 and 1/2
    for p in (0.25, 0.5, 0.75):
        assert torch.equal(keep_top_p(logits, p), their_processors.TopPLogitsWarper(p)(None, logits))


def test_equal_seeds_draw_equal_tokens_and_keep_the_global_state(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    state = torch.get_rng_state()
    first, second, other = (model.generate(IDS, do_sample=True, max_new_tokens=15, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    drawn = model.generate(IDS, do_sample=True, max_new_tokens=15, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, first)
    with pytest.raises(PunaError, match="seed 7 and a generator"):
        model.generate(IDS, do_sample=True, seed=7, generator=torch.Generator())


def test_temperature_0_is_greedy(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    greedy = model.generate(IDS, max_new_tokens=10)
    assert torch.equal(model.generate(IDS, max_new_tokens=10, do_sample=True, temperature=0.0), greedy)


def test_a_left_padded_batch_equals_single_texts(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    ids, mask, _ = ragged(model.config, (9, 14, 5), "left")
    together = model.generate(ids, attention_mask=mask, max_new_tokens=12, eos_token_id=[], pad_token_id=0)
    for row, keep, result in zip(ids, mask.bool(), together, strict=True):
        alone = model.generate(row[keep][None], max_new_tokens=12, eos_token_id=[])
        assert torch.equal(result[-12:], alone[0, -12:])


def test_padding_is_inferred_from_the_pad_token_unless_it_is_eos(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    ids, mask, _ = ragged(model.config, (9, 5), "left")
    settings: dict[str, Any] = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 2}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, attention_mask=mask, **settings))
    settings["eos_token_id"] = [2, 0]
    whole = model.generate(ids, attention_mask=torch.ones_like(mask), **settings)
    assert torch.equal(model.generate(ids, **settings), whole)


def test_lengths(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    settings: dict[str, Any] = {"eos_token_id": []}
    assert model.generate(IDS, **settings).shape == (2, 20)  # the reference's default
    assert model.generate(IDS, max_length=9, **settings).shape == (2, 9)
    assert model.generate(IDS, max_length=9, max_new_tokens=5, **settings).shape == (2, 11)
    assert model.generate(IDS, max_new_tokens=0, **settings).shape == (2, 6)
    defaults = GenerationConfig(max_new_tokens=4, eos_token_id=[])
    assert model.generate(IDS, defaults).shape == (2, 10)
    assert model.generate(IDS, defaults, max_length=8).shape == (
        2,
        8,
    )  # the call takes precedence over the configuration
    assert defaults.max_new_tokens == 4
    with pytest.raises(PunaError, match=r"prompt has 6 tokens and max_length is 6.*max_new_tokens"):
        model.generate(IDS, max_length=6)


def test_eos_ends_rows_and_the_pad_token_fills_them(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    free = model.generate(IDS, max_new_tokens=12, eos_token_id=[])[:, 6:]
    eos = int(free[0, 3])
    assert eos not in free[0, :3]
    result = model.generate(IDS, max_new_tokens=12, eos_token_id=eos, pad_token_id=0)[:, 6:]
    assert torch.equal(result[0, :4], free[0, :4])
    assert (result[0, 4:] == 0).all()
    # without a pad token, eos is the filler; the longest row determines the length
    result = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=[eos, 66])[:, 6:]
    assert result.tolist() == [free[0, :4].tolist()]
    result = model.generate(IDS[:1].repeat(2, 1), max_new_tokens=12, eos_token_id=[66, eos])[:, 6:]
    assert result.tolist() == [free[0, :4].tolist()] * 2
    longer = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=eos, min_new_tokens=6)[:, 6:]
    assert longer.shape[1] >= 7 or eos not in longer[0]
    assert eos not in longer[0, :6]


class Record:
    def __init__(self) -> None:
        self.put_: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.put_.append(value)

    def end(self) -> None:
        self.ended += 1


def test_streamer_receives_prompt_then_tokens_then_the_end(both: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = both
    mine, expected = Record(), Record()
    result = ours.generate(IDS[:1], max_new_tokens=7, streamer=mine)
    theirs.generate(IDS[:1], max_new_tokens=7, do_sample=False, pad_token_id=0, streamer=expected)
    assert mine.ended == expected.ended == 1
    assert len(mine.put_) == len(expected.put_)
    assert all(torch.equal(a, b) for a, b in zip(mine.put_, expected.put_, strict=True))
    assert torch.equal(torch.cat([tensor.flatten() for tensor in mine.put_]), result[0])


def test_stopping_criteria_of_both_kinds(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    free = model.generate(IDS, max_new_tokens=12, eos_token_id=[])
    whole = model.generate(IDS, max_new_tokens=12, eos_token_id=[], stopping_criteria=[lambda i, _: i.shape[1] == 10])
    assert torch.equal(whole, free[:, :10])
    word = int(free[1, 7])
    assert word != free[1, 6]
    result = model.generate(
        IDS, max_new_tokens=12, eos_token_id=[], pad_token_id=0, stopping_criteria=[lambda i, _: i[:, -1] == word]
    )
    assert torch.equal(result[1, :8], free[1, :8])
    assert result.shape[1] > 8
    assert (result[1, 8:] == 0).all()
    theirs = transformers.StoppingCriteriaList([transformers.generation.MaxLengthCriteria(max_length=9)])
    assert model.generate(IDS, max_new_tokens=12, eos_token_id=[], stopping_criteria=theirs).shape == (2, 9)


def test_logits_processors_run_before_the_temperature(both: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = both
    seen: list[Tensor] = []

    def only_even(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append(logits)
        return logits.masked_fill(torch.arange(67) % 2 == 1, float("-inf"))

    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "pad_token_id": 0}
    torch.manual_seed(0)
    result = ours.generate(IDS, logits_processor=[only_even], **settings)
    assert (result[:, 6:] % 2 == 0).all()
    with torch.no_grad():
        assert distance(seen[0], ours(IDS).logits[:, -1]) <= 1e-6
    torch.manual_seed(0)
    listed = transformers.LogitsProcessorList([only_even])
    assert torch.equal(result, theirs.generate(IDS, logits_processor=listed, **settings))


def test_dictionary_output(both: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = both
    settings: dict[str, Any] = {"max_new_tokens": 6, "output_scores": True, "return_dict_in_generate": True}
    settings |= {"repetition_penalty": 1.3, "eos_token_id": 2, "pad_token_id": 0}
    result, expected = ours.generate(IDS, **settings), theirs.generate(IDS, do_sample=False, **settings)
    assert isinstance(result, GenerateOutput)
    assert torch.equal(result.sequences, expected.sequences)
    for mine, other in zip(result.scores, expected.scores, strict=True):
        assert distance(mine, other) <= 1e-5
    assert result.past_key_values.length == result.sequences.shape[1] - 1


def test_a_cache_is_continued(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    expected = model.generate(IDS, max_new_tokens=8)
    with torch.no_grad():
        cache = model(IDS[:, :4]).past_key_values
    assert torch.equal(model.generate(IDS, past_key_values=cache, max_new_tokens=8), expected)
    assert torch.equal(model.generate(IDS, past_key_values=tuple(cache), max_new_tokens=8), expected)
    # the cache holds tokens that are not among the ids: the mask covers them
    mask = torch.ones_like(IDS)
    rest = model.generate(IDS[:, 4:], past_key_values=cache, attention_mask=mask, max_new_tokens=8)
    assert torch.equal(rest, expected[:, 4:])
    drawn = model.generate(IDS, past_key_values=cache, max_new_tokens=8, do_sample=True, num_return_sequences=2, seed=1)
    plain = model.generate(IDS, max_new_tokens=8, do_sample=True, num_return_sequences=2, seed=1)
    assert torch.equal(drawn, plain)


def test_a_prompt_that_is_cached_completely_is_an_error(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    with torch.no_grad():
        cache = model(IDS).past_key_values
    assert isinstance(cache, KVCache)
    with pytest.raises(PunaError, match=r"6 tokens.*6 are cached"):
        model.generate(IDS, past_key_values=cache, max_new_tokens=3)


def test_with_embeddings_only_the_new_tokens_are_returned(both: tuple[LlamaForCausalLM, Any]) -> None:
    ours, theirs = both
    embeds = ours.get_input_embeddings()(IDS).detach()
    result = ours.generate(inputs_embeds=embeds, max_new_tokens=9)
    assert torch.equal(result, ours.generate(IDS, max_new_tokens=9)[:, 6:])
    mask = torch.ones_like(IDS)
    expected = theirs.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=2
    )
    assert torch.equal(result, expected)


def test_without_a_prompt_the_text_starts_from_bos(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    result = model.generate(max_new_tokens=4)
    assert torch.equal(result, model.generate(torch.tensor([[1]]), max_new_tokens=4))
    assert torch.equal(result, model.generate(input_ids=torch.tensor([[1]]), max_new_tokens=4))


def test_beyond_the_original_context_of_dynamic() -> None:
    ours, _ = pair(config_of(rope_scaling=DYNAMIC, max_position_embeddings=8))
    cached = ours.generate(IDS, max_new_tokens=14, eos_token_id=[])
    assert torch.equal(cached, ours.generate(IDS, max_new_tokens=14, eos_token_id=[], use_cache=False))


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 4}, "num_beams is 4.*must be 1"),
    ({"num_return_sequences": 2}, "num_return_sequences is 2.*do_sample"),
    ({"generation_config": GenerationConfig(no_repeat_ngram_size=3)}, "no_repeat_ngram_size is 3.*not supported"),
    ({"generation_config": GenerationConfig(typical_p=0.9)}, "typical_p"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]] * 2)}, "pad on the left"),
    ({"attention_mask": torch.ones(3, 6)}, r"\(3, 6\).*each of 2 prompts"),
    ({"input_ids": IDS}, "given twice"),
    ({"inputs_embeds": torch.zeros(2, 6, 48)}, "given twice"),
]


@pytest.mark.parametrize(("arguments", "text"), INVALID)
def test_invalid_arguments_are_errors(both: tuple[LlamaForCausalLM, Any], arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(PunaError, match=text):
        both[0].generate(IDS, **arguments)


def test_values_that_disable_a_setting_are_accepted(both: tuple[LlamaForCausalLM, Any]) -> None:
    defaults = GenerationConfig(max_new_tokens=3, typical_p=1.0, no_repeat_ngram_size=0, transformers_version="4.34.0")
    assert both[0].generate(IDS, defaults).shape == (2, 9)


def test_prepare_inputs_for_generation_equals_the_reference(both: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = both
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    first = model.prepare_inputs_for_generation(IDS, attention_mask=mask, use_cache=True)
    assert torch.equal(first["input_ids"], IDS)
    assert first["position_ids"].tolist() == [[1, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    with torch.no_grad():
        cache = model(IDS[:, :5]).past_key_values
    step = model.prepare_inputs_for_generation(IDS, past_key_values=cache, attention_mask=mask)
    assert torch.equal(step["input_ids"], IDS[:, 5:])
    assert step["position_ids"].tolist() == [[3], [5]]
    assert model.prepare_inputs_for_generation(IDS)["position_ids"] is None
