"""`generate()` compared with that of transformers for equal weights and seeds, and behaviour specific to puna."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import PunaError
from puna.model import KVCache, LlamaForCausalLM
from puna.model.generation.outputs import GenerateDecoderOnlyOutput
from tests.helpers.configurations import CONFIGURATIONS, DYNAMIC, config_of
from tests.helpers.reference_models import distance, pair, ragged

IDS = torch.randint(3, 67, (2, 6), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, Any]:
    # Small weights make the distributions flat, so that EOS occurs and seeds draw different tokens.
    return pair(config_of(num_key_value_heads=2, initializer_range=0.12), seed=4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_greedy_tokens_equal_those_of_transformers(name: str) -> None:
    model, reference = pair(config_of(**CONFIGURATIONS[name]), seed=5)
    ids, mask, _ = ragged(model.config, (9, 14, 5), "left")
    settings: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 25, "pad_token_id": 0}
    result = model.generate(ids, **settings)
    assert torch.equal(result, reference.generate(ids, do_sample=False, **settings))
    assert torch.equal(result[:, :14], ids)
    assert torch.equal(result, model.generate(ids, use_cache=False, **settings))


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
def test_sampling_draws_the_same_tokens_as_transformers(
    models: tuple[LlamaForCausalLM, Any], settings: dict[str, Any]
) -> None:
    model, reference = models
    common = {"max_new_tokens": 20, "do_sample": True, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    torch.manual_seed(11)
    result = model.generate(IDS, **common, **settings)
    torch.manual_seed(11)
    assert torch.equal(result, reference.generate(IDS, **common, **settings))
    torch.manual_seed(12)
    assert not torch.equal(result, model.generate(IDS, **common, **settings))


def test_top_k_of_minus_one_samples_from_all_tokens(models: tuple[LlamaForCausalLM, Any]) -> None:
    results = [models[0].generate(IDS, max_new_tokens=20, do_sample=True, top_k=k, seed=3) for k in (-1, 0, 1)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_equal_seeds_draw_equal_tokens_and_keep_the_global_state(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    state = torch.get_rng_state()
    first, second, other = (model.generate(IDS, do_sample=True, max_new_tokens=15, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    from_generator = model.generate(IDS, do_sample=True, max_new_tokens=15, generator=torch.Generator().manual_seed(7))
    assert torch.equal(from_generator, first)
    with pytest.raises(PunaError, match="seed 7 and a generator"):
        model.generate(IDS, do_sample=True, seed=7, generator=torch.Generator())


def test_temperature_0_is_greedy(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    greedy = model.generate(IDS, max_new_tokens=10)
    assert torch.equal(model.generate(IDS, max_new_tokens=10, do_sample=True, temperature=0.0), greedy)


def test_a_left_padded_batch_equals_single_texts(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    ids, mask, _ = ragged(model.config, (9, 14, 5), "left")
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=12, eos_token_id=[], pad_token_id=0)
    for row, keep, result in zip(ids, mask.bool(), batch, strict=True):
        single = model.generate(row[keep][None], max_new_tokens=12, eos_token_id=[])
        assert torch.equal(result[-12:], single[0, -12:])


def test_padding_is_inferred_from_the_pad_token_unless_it_is_eos(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    ids, mask, _ = ragged(model.config, (9, 5), "left")
    settings: dict[str, Any] = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 2}
    assert torch.equal(model.generate(ids, **settings), model.generate(ids, attention_mask=mask, **settings))
    settings["eos_token_id"] = [2, 0]
    unmasked = model.generate(ids, attention_mask=torch.ones_like(mask), **settings)
    assert torch.equal(model.generate(ids, **settings), unmasked)


def test_max_length_and_max_new_tokens_limit_the_answer(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    settings: dict[str, Any] = {"eos_token_id": []}
    with pytest.warns(UserWarning, match="default max_length of 20"):  # the default of transformers
        assert model.generate(IDS, **settings).shape == (2, 20)
    assert model.generate(IDS, max_length=9, **settings).shape == (2, 9)
    assert model.generate(IDS, max_length=9, max_new_tokens=5, **settings).shape == (2, 11)
    assert model.generate(IDS, max_new_tokens=0, **settings).shape == (2, 6)
    defaults = GenerationConfig(max_new_tokens=4, eos_token_id=[])
    assert model.generate(IDS, defaults).shape == (2, 10)
    # The argument takes precedence over the configuration.
    assert model.generate(IDS, defaults, max_length=8).shape == (2, 8)
    assert defaults.max_new_tokens == 4
    for length in (4, 6):
        with pytest.warns(UserWarning, match=rf"prompt has 6 tokens and max_length is {length}.*max_new_tokens"):
            assert torch.equal(model.generate(IDS, max_length=length), model.generate(IDS, max_new_tokens=1))


def test_eos_ends_rows_and_the_pad_token_fills_them(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    unstopped = model.generate(IDS, max_new_tokens=12, eos_token_id=[])[:, 6:]
    eos = int(unstopped[0, 3])
    assert eos not in unstopped[0, :3]
    result = model.generate(IDS, max_new_tokens=12, eos_token_id=eos, pad_token_id=0)[:, 6:]
    assert torch.equal(result[0, :4], unstopped[0, :4])
    assert (result[0, 4:] == 0).all()
    # Without a pad token, EOS pads the shorter rows; the longest row determines the length.
    result = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=[eos, 66])[:, 6:]
    assert result.tolist() == [unstopped[0, :4].tolist()]
    result = model.generate(IDS[:1].repeat(2, 1), max_new_tokens=12, eos_token_id=[66, eos])[:, 6:]
    assert result.tolist() == [unstopped[0, :4].tolist()] * 2
    longer = model.generate(IDS[:1], max_new_tokens=12, eos_token_id=eos, min_new_tokens=6)[:, 6:]
    assert longer.shape[1] >= 7 or eos not in longer[0]
    assert eos not in longer[0, :6]


class RecordingStreamer:
    """A streamer that records the tensors that it receives and counts the calls of `end`."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.tensors.append(value)

    def end(self) -> None:
        self.ended += 1


def test_streamer_receives_prompt_then_tokens_then_the_end(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, reference = models
    record, expected = RecordingStreamer(), RecordingStreamer()
    result = model.generate(IDS[:1], max_new_tokens=7, streamer=record)
    reference.generate(IDS[:1], max_new_tokens=7, do_sample=False, pad_token_id=0, streamer=expected)
    assert record.ended == expected.ended == 1
    assert len(record.tensors) == len(expected.tensors)
    assert all(torch.equal(a, b) for a, b in zip(record.tensors, expected.tensors, strict=True))
    assert torch.equal(torch.cat([tensor.flatten() for tensor in record.tensors]), result[0])


def test_stopping_criteria_may_stop_all_rows_or_single_rows(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    unstopped = model.generate(IDS, max_new_tokens=12, eos_token_id=[])
    result = model.generate(IDS, max_new_tokens=12, eos_token_id=[], stopping_criteria=[lambda i, _: i.shape[1] == 10])
    assert torch.equal(result, unstopped[:, :10])
    stop_id = int(unstopped[1, 7])
    assert stop_id != unstopped[1, 6]
    result = model.generate(
        IDS, max_new_tokens=12, eos_token_id=[], pad_token_id=0, stopping_criteria=[lambda i, _: i[:, -1] == stop_id]
    )
    assert torch.equal(result[1, :8], unstopped[1, :8])
    assert result.shape[1] > 8
    assert (result[1, 8:] == 0).all()
    criteria = transformers.StoppingCriteriaList([transformers.generation.MaxLengthCriteria(max_length=9)])
    with pytest.warns(UserWarning, match="MaxLengthCriteria was passed"):
        assert model.generate(IDS, max_new_tokens=12, eos_token_id=[], stopping_criteria=criteria).shape == (2, 9)


def test_logits_processors_run_before_the_temperature(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, reference = models
    processed: list[Tensor] = []

    def only_even(ids: Tensor, logits: Tensor) -> Tensor:
        processed.append(logits)
        return logits.masked_fill(torch.arange(67) % 2 == 1, float("-inf"))

    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "pad_token_id": 0}
    torch.manual_seed(0)
    result = model.generate(IDS, logits_processor=[only_even], **settings)
    assert (result[:, 6:] % 2 == 0).all()
    with torch.no_grad():
        assert distance(processed[0], model(IDS).logits[:, -1]) <= 1e-6
    torch.manual_seed(0)
    processors = transformers.LogitsProcessorList([only_even])
    assert torch.equal(result, reference.generate(IDS, logits_processor=processors, **settings))


def test_scores_and_cache_are_returned_on_request(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, reference = models
    settings: dict[str, Any] = {"max_new_tokens": 6, "output_scores": True, "return_dict_in_generate": True}
    settings |= {"repetition_penalty": 1.3, "eos_token_id": 2, "pad_token_id": 0}
    result, expected = model.generate(IDS, **settings), reference.generate(IDS, do_sample=False, **settings)
    assert isinstance(result, GenerateDecoderOnlyOutput)
    assert torch.equal(result.sequences, expected.sequences)
    for scores, expected_scores in zip(result.scores, expected.scores, strict=True):
        assert distance(scores, expected_scores) <= 1e-5
    assert result.past_key_values.length == result.sequences.shape[1] - 1


def test_generation_continues_a_cache(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    expected = model.generate(IDS, max_new_tokens=8)
    with torch.no_grad():
        cache = model(IDS[:, :4]).past_key_values
    assert torch.equal(model.generate(IDS, past_key_values=cache, max_new_tokens=8), expected)
    assert torch.equal(model.generate(IDS, past_key_values=tuple(cache), max_new_tokens=8), expected)
    # The mask covers cached tokens that are not among the ids.
    mask = torch.ones_like(IDS)
    continuation = model.generate(IDS[:, 4:], past_key_values=cache, attention_mask=mask, max_new_tokens=8)
    assert torch.equal(continuation, expected[:, 4:])
    with_cache = model.generate(
        IDS, past_key_values=cache, max_new_tokens=8, do_sample=True, num_return_sequences=2, seed=1
    )
    without_cache = model.generate(IDS, max_new_tokens=8, do_sample=True, num_return_sequences=2, seed=1)
    assert torch.equal(with_cache, without_cache)


def test_a_prompt_that_is_cached_completely_is_an_error(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    with torch.no_grad():
        cache = model(IDS).past_key_values
    assert isinstance(cache, KVCache)
    with pytest.raises(PunaError, match=r"6 tokens.*6 are cached"):
        model.generate(IDS, past_key_values=cache, max_new_tokens=3)


def test_with_embeddings_only_the_new_tokens_are_returned(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, reference = models
    embeds = model.get_input_embeddings()(IDS).detach()
    result = model.generate(inputs_embeds=embeds, max_new_tokens=9)
    assert torch.equal(result, model.generate(IDS, max_new_tokens=9)[:, 6:])
    mask = torch.ones_like(IDS)
    expected = reference.generate(
        inputs_embeds=embeds, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=2
    )
    assert torch.equal(result, expected)


def test_without_a_prompt_the_text_starts_from_bos(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
    result = model.generate(max_new_tokens=4)
    assert torch.equal(result, model.generate(torch.tensor([[1]]), max_new_tokens=4))
    assert torch.equal(result, model.generate(input_ids=torch.tensor([[1]]), max_new_tokens=4))


def test_caching_does_not_change_tokens_beyond_the_original_context_with_dynamic_scaling() -> None:
    model, _ = pair(config_of(rope_scaling=DYNAMIC, max_position_embeddings=8))
    cached = model.generate(IDS, max_new_tokens=14, eos_token_id=[])
    assert torch.equal(cached, model.generate(IDS, max_new_tokens=14, eos_token_id=[], use_cache=False))


INVALID_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"num_return_sequences": 2}, "num_return_sequences is 2.*do_sample"),
    ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0"),
    ({"attention_mask": torch.ones(3, 6)}, r"\(3, 6\).*each of 2 prompts"),
    ({"input_ids": IDS}, "given twice"),
    ({"inputs_embeds": torch.zeros(3, 6, 48)}, "2 rows of ids and 3 of inputs_embeds"),
    ({"custom_generate": "owner/name"}, "custom_generate is 'owner/name'"),
    ({"cache_implementation": "paged"}, "cache_implementation is 'paged'.*'static'"),
    ({"token_healing": True}, "token_healing needs the model's tokenizer"),
    ({"max_new_token": 4}, "no argument 'max_new_token'.*did you mean 'max_new_tokens'"),
    ({"temprature": 0.4}, "did you mean 'temperature'"),
    ({"streamer": object()}, "streamer is .*must have put and end"),
    ({"streamer": Mock(spec=["put", "end"]), "num_beams": 2}, "streamer cannot be used with beam search"),
    ({"generation_config": 3}, "generation_config is 3"),
]


@pytest.mark.parametrize(("arguments", "text"), INVALID_ARGUMENTS)
def test_invalid_arguments_are_errors(
    models: tuple[LlamaForCausalLM, Any], arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(PunaError, match=text):
        models[0].generate(IDS, **{"max_new_tokens": 3, **arguments})


def test_values_that_disable_a_setting_are_accepted(models: tuple[LlamaForCausalLM, Any]) -> None:
    defaults = GenerationConfig(max_new_tokens=3, typical_p=1.0, no_repeat_ngram_size=0, transformers_version="4.34.0")
    assert models[0].generate(IDS, defaults).shape == (2, 9)


def test_prepare_inputs_for_generation_returns_uncached_ids_and_positions(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, _ = models
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
