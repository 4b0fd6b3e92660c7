"""The processors that `generate()` builds from settings, their order, and lists with the caller's processors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import puna
from puna.config import GenerationConfig
from puna.errors import PunaError
from puna.model import LlamaForCausalLM
from puna.model.generation.processors.build import Context, build_processors
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair, ragged

IDS = torch.tensor([[5, 6, 5, 7, 6], [9, 8, 9, 9, 4]])
SCORES = torch.randn(2, 67, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, Any]:
    return pair(config_of(num_key_value_heads=2, initializer_range=0.12), seed=4)


def built(options: dict[str, Any], ids: Tensor = IDS, custom: Any = (), **facts: Any) -> puna.LogitsProcessorList:
    """Returns the processors for options and a maximum length of 9."""
    return build_processors(GenerationConfig.from_stored(options), Context(ids, 9, 67, **facts), custom)


def reference_built(model: Any, options: dict[str, Any], ids: Tensor = IDS, **arguments: Any) -> Any:
    """Returns the processors that transformers builds."""
    settings = transformers.GenerationConfig(**{"max_length": 9, "num_beams": 1, **options})
    model._prepare_special_tokens(settings, kwargs_has_attention_mask=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model._get_logits_processor(
            settings, ids.shape[1], ids, logits_processor=puna.LogitsProcessorList(), device="cpu", **arguments
        )


def same_class(ours: Any, reference: Any) -> None:
    assert [type(item).__name__ for item in ours] == [type(item).__name__ for item in reference]


SAMPLING = {
    "do_sample": True, "temperature": 0.7, "top_h": 0.9, "top_k": 20, "top_p": 0.8, "min_p": 0.02, "typical_p": 0.9,
    "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "renormalize_logits": True, "eos_token_id": [2, 7],
}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sequence_bias": [[[5], 1.5], [[9, 4, 3], 2.0]], "encoder_repetition_penalty": 1.2, "repetition_penalty": 1.3,
     "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[3], [6, 4]], "min_length": 8,
     "forced_bos_token_id": 3, "forced_eos_token_id": 2, "remove_invalid_values": True,
     "exponential_decay_length_penalty": (0, 1.2), "suppress_tokens": [4], "begin_suppress_tokens": [6],
     "renormalize_logits": True, "eos_token_id": 2},
    {"guidance_scale": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
     "eos_token_id": 2, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    {"min_length": 8, "min_new_tokens": 7},
    {"watermarking_config": {"bias": 3.0, "hashing_key": 5}, "repetition_penalty": 1.1},
    SAMPLING,
    {**SAMPLING, "num_beams": 3},
    {**SAMPLING, "num_beams": 3, "top_k": 1, "eos_token_id": None},
    {**SAMPLING, "top_k": 0, "top_p": 1.0, "min_p": None, "top_h": None, "temperature": 1.0},
    {"do_sample": False, "temperature": 0.7, "top_k": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_order_and_result_equal_those_of_transformers(models: tuple[Any, Any], options: dict[str, Any]) -> None:
    ours, reference = built(options), reference_built(models[1], options)
    same_class(ours, reference)
    for tokens in (5, 1):
        ids = IDS[:, :tokens]
        torch.testing.assert_close(ours(ids, SCORES), reference(ids, SCORES.clone()), rtol=0, atol=0)


def test_begin_suppress_tokens_start_after_forced_tokens(models: tuple[Any, Any]) -> None:
    options: dict[str, Any] = {"begin_suppress_tokens": [6], "forced_bos_token_id": 3, "eos_token_id": 2}
    for ids in (IDS, IDS[:, :1]):
        expected = next(p for p in reference_built(models[1], options, ids) if hasattr(p, "begin_index"))
        assert next(p for p in built(options, ids) if hasattr(p, "begin_index")).begin_index == expected.begin_index
    forced = built({"begin_suppress_tokens": [6], "forced_decoder_ids": [[5, 11], [6, 12]]})
    assert forced[0].begin_index == 5 + 6  # recorded from transformers 4.34.1
    assert type(forced[1]) is puna.ForceTokensLogitsProcessor


def test_the_function_for_allowed_tokens_is_called_per_prompt() -> None:
    calls = []
    allow = lambda prompt, ids: calls.append((prompt, ids.tolist())) or [prompt + 3]  # noqa: E731
    result = built({"num_beams": 4, "num_beam_groups": 2}, prefix_allowed_tokens_fn=allow)(IDS, SCORES)
    assert calls == [(0, IDS[0].tolist()), (0, IDS[1].tolist())]
    assert result.isfinite().nonzero().tolist() == [[0, 3], [1, 3]]
    with pytest.raises(PunaError, match="prefix_allowed_tokens_fn returned no token for the prompt 1"):
        built({}, prefix_allowed_tokens_fn=lambda prompt, ids: [1][prompt:])(IDS, SCORES)


def test_an_object_of_the_caller_replaces_one_of_the_same_class() -> None:
    options = {"min_length": 7, "repetition_penalty": 1.2, "do_sample": True, "top_k": 3, "eos_token_id": 2}
    own = puna.MinLengthLogitsProcessor(3, 2)
    last = puna.SuppressTokensLogitsProcessor([1])
    with pytest.warns(UserWarning, match="MinLengthLogitsProcessor was passed to generate"):
        result = built(options, custom=[last, own])
    assert result[1] is own and result[2] is last and len(result) == 4
    assert type(result[3]) is puna.TopKLogitsWarper, "warpers follow the caller's processors"
    foreign = transformers.MinLengthLogitsProcessor(3, 2)
    with pytest.warns(UserWarning, match="MinLengthLogitsProcessor was passed to generate"):
        assert built(options, custom=[foreign])[1] is foreign
    assert built({"eos_token_id": 2}, custom=[foreign, own]) == [foreign, own]


def test_a_minimum_of_new_tokens_replaces_the_minimum_length() -> None:
    with pytest.warns(UserWarning, match="min_length is 8 and min_new_tokens 1; min_new_tokens takes precedence"):
        both = built({"min_length": 8, "min_new_tokens": 1, "eos_token_id": 2})
    assert both[0].min_length == 6 and both[1].min_new_tokens == 1  # as transformers prepares them
    assert both(IDS, SCORES)[:, 2].isneginf().all()
    assert torch.equal(both(torch.cat((IDS, IDS), dim=1), SCORES), SCORES)
    embeddings = built({"min_length": 8, "eos_token_id": 2}, IDS[:, :0], attention_mask=torch.ones(2, 5))
    assert embeddings[0].min_length == 3
    assert built({"min_length": 5, "eos_token_id": 2}, IDS[:, :0], attention_mask=torch.ones(2, 5)) == []


def test_empty_lists_and_missing_values_have_no_effect() -> None:
    names = ("sequence_bias", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids")
    assert built({name: [] for name in names}) == []
    settings = GenerationConfig(do_sample=True, top_k=0)
    for name in ("temperature", "top_k", "top_p", "num_beams", "repetition_penalty", "use_cache", "typical_p"):
        setattr(settings, name, None)
    assert build_processors(settings, Context(IDS, 9, 67)) == []


def test_options_that_need_others_are_errors() -> None:
    with pytest.raises(PunaError, match=r"exponential_decay_length_penalty is .* set eos_token_id"):
        built({"exponential_decay_length_penalty": (1, 1.1)})
    settings = GenerationConfig()
    settings.watermarking_config = 3
    with pytest.raises(PunaError, match="watermarking_config is 3"):
        build_processors(settings, Context(IDS, 9, 67))


@pytest.mark.parametrize("option", ["encoder_repetition_penalty", "repetition_penalty", "no_repeat_ngram_size"])
def test_options_that_need_ids_warn_about_embeddings(option: str) -> None:
    with pytest.warns(UserWarning, match=f"^{option} needs the ids of the prompt"):
        result = built({option: 2}, IDS[:, :0])
    assert len(result) == (0 if option.startswith("encoder") else 1)


def test_the_repetition_penalty_ignores_padding_as_in_transformers(models: tuple[Any, Any]) -> None:
    model, reference = models
    ids, mask, _ = ragged(model.config, (9, 14, 5), "left")
    settings = {"attention_mask": mask, "max_new_tokens": 12, "pad_token_id": 0, "repetition_penalty": 1.6}
    result = model.generate(ids, **settings)
    assert torch.equal(result, reference.generate(ids, do_sample=False, **settings))
    context = Context(ids, 20, 67, torch.cat((torch.ones(3, 4), mask), dim=1))  # four cached tokens precede
    counted = build_processors(GenerationConfig(repetition_penalty=1.6), context)[0].prompt_ignore_length
    assert counted.tolist() == [5, 0, 9]


def test_a_list_passes_arguments_by_name() -> None:
    def plain(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + 1

    class Named(puna.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, offset: int, unused: int = 0) -> Tensor:  # type: ignore[override]
            return scores + offset

    class Anything(puna.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            return scores + sum(kwargs.values())

    zeros = torch.zeros(2, 3)
    processors = puna.LogitsProcessorList([plain, Named(), Anything()])
    assert processors(IDS, zeros, offset=10, other=100).unique().tolist() == [1 + 10 + 110]
    with pytest.raises(PunaError, match="Named needs the arguments offset"):
        processors(IDS, zeros)
    assert isinstance(processors, list) and len(processors) == 3
    foreign = transformers.LogitsProcessorList([puna.TopKLogitsWarper(2), puna.LogitNormalization()])
    assert foreign(IDS, SCORES).isfinite().sum() == 4, "transformers' list accepts these classes"


def test_diversity_and_forced_tokens_equal_values_recorded_from_transformers_4() -> None:
    scores = torch.zeros(4, 8)
    processors = puna.LogitsProcessorList([puna.HammingDiversityLogitsProcessor(0.5, num_beams=4, num_beam_groups=2)])
    chosen = torch.tensor([1, 1, 0, 0, 2, 5, 0, 0])
    assert torch.equal(processors(None, scores, current_tokens=chosen, beam_group_idx=0), scores)
    first, second = [0.0, -1, 0, 0, 0, 0, 0, 0], [0.0, 0, -0.5, 0, 0, -0.5, 0, 0]
    result = processors(None, scores, current_tokens=chosen, beam_group_idx=1)
    assert result.tolist() == [first, first, second, second]
    with pytest.raises(PunaError, match="needs the arguments current_tokens, beam_group_idx"):
        processors(None, scores)
    force = puna.ForceTokensLogitsProcessor([[5, 3], [6, None]])
    assert force(IDS, SCORES).tolist() == [[0.0 if token == 3 else float("-inf") for token in range(67)]] * 2
    for ids in (IDS[:, :4], torch.cat((IDS, IDS[:, :1]), dim=1)):
        assert torch.equal(force(ids, SCORES), SCORES)


@pytest.mark.parametrize(
    "arguments", [(0.0, 4, 2), (1, 4, 2), (0.5, 1, 2), (0.5, 4, 1), (0.5, 2, 4), (0.5, 4.0, 2), (-0.5, 4, 2)]
)
def test_diversity_checks_its_arguments(arguments: tuple[Any, Any, Any]) -> None:
    with pytest.raises(PunaError, match=r"diversity_penalty|num_beams|num_beam_groups"):
        puna.HammingDiversityLogitsProcessor(*arguments)


def test_warpers_and_processors_have_their_base_classes() -> None:
    assert isinstance(puna.TopKLogitsWarper(3), puna.LogitsWarper)
    assert isinstance(puna.TopKLogitsWarper(3), puna.LogitsProcessor)
    assert not isinstance(puna.InfNanRemoveLogitsProcessor(), puna.LogitsWarper)
    for base in (puna.LogitsProcessor, puna.LogitsWarper):
        with pytest.raises(NotImplementedError, match=base.__name__):
            base()(IDS, SCORES)
