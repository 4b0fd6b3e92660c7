"""The arguments of `generate()` compared with those of transformers: prompts, outputs, caches, settings, notices."""

from __future__ import annotations

import json
import logging
import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from puna import GenerationConfig
from puna.errors import ConfigError, RequestError
from puna.model import KVCache, LlamaForCausalLM
from puna.model.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from tests.helpers.configurations import CONFIGURATIONS, config_of
from tests.helpers.reference_models import distance, pair, ragged

IDS = torch.randint(3, 67, (2, 6), generator=torch.Generator().manual_seed(3))
ONES = torch.ones_like(IDS)
REFERENCE: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2, "do_sample": False}


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, Any]:
    return pair(config_of(num_key_value_heads=2, initializer_range=0.12), seed=4)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(4)
    return LlamaForCausalLM(config_of(num_key_value_heads=2, initializer_range=0.12)).eval()


# ---- random pairs of configurations and options

CHOICES: dict[str, list[Any]] = {
    "max_new_tokens": [4, 7, 12],
    "min_new_tokens": [None, 4],
    "eos_token_id": [2, [2, 9], list(range(20, 40))],
    "repetition_penalty": [1.0, 1.4, 0.7],
    "no_repeat_ngram_size": [0, 2],
    "suppress_tokens": [None, [5, 6, 7]],
    "renormalize_logits": [False, True],
    "use_cache": [True, False],
    "output_logits": [False, True],
}
SAMPLED: dict[str, list[Any]] = {
    "temperature": [1.0, 0.7, 1.6],
    "top_k": [50, 5, 0],
    "top_p": [1.0, 0.8],
    "min_p": [None, 0.05],
    "typical_p": [1.0, 0.6],
    "num_return_sequences": [1, 3],
}


def reference_call(reference: Any, *inputs: Any, **options: Any) -> Any:
    """Returns the reference's result; transformers saves no state between calls that would change it."""
    return reference.generate(*inputs, **{**REFERENCE, **options})


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("case", range(40))
def test_random_options_give_the_tokens_and_scores_of_transformers(case: int, sampled: bool) -> None:
    """Tokens must be equal unless the two best scores differ by rounding; no case here needs that exception."""
    rng = random.Random(case * 2 + sampled)
    name = rng.choice(list(CONFIGURATIONS))
    model, reference = pair(config_of(**CONFIGURATIONS[name]), seed=case)
    ids, mask, _ = ragged(model.config, rng.choice([(9,), (5, 8), (8, 8, 3)]), "left", seed=case)
    choices = {**CHOICES, **SAMPLED} if sampled else CHOICES
    options = {key: rng.choice(values) for key, values in choices.items()}
    if name.startswith("dynamic") or "longrope" in name:
        options["use_cache"] = True  # the reference changes its frequencies between calls
    options |= {"do_sample": sampled, "pad_token_id": 0, "attention_mask": mask, "output_scores": True}
    results = []
    for which in (model, reference):
        torch.manual_seed(case)
        results.append(which.generate(ids, return_dict_in_generate=True, **options))
    result, expected = results
    assert torch.equal(result.sequences, expected.sequences), (name, options)
    assert len(result.scores) == len(expected.scores)
    for field in ("scores", "logits") if options["output_logits"] else ("scores",):
        for ours, theirs in zip(result[field], expected[field], strict=True):
            both = ours.isfinite() & theirs.isfinite()
            # The threshold of a filter may be between probabilities that differ only by rounding.
            assert (ours.isfinite() | theirs.isfinite()).sum() - both.sum() <= 1
            assert torch.allclose(ours[both], theirs[both], atol=1e-4)


# ---- outputs

OUTPUTS: dict[str, Any] = {
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True,
}  # fmt: skip


@pytest.mark.parametrize("use_cache", [True, False])
def test_optional_outputs_have_the_shapes_and_values_of_transformers(
    models: tuple[LlamaForCausalLM, Any], use_cache: bool
) -> None:
    options = {"max_new_tokens": 4, "attention_mask": ONES, "use_cache": use_cache, **OUTPUTS}
    result, expected = models[0].generate(IDS, **options), reference_call(models[1], IDS, **options)
    assert isinstance(result, GenerateDecoderOnlyOutput)
    assert list(result) == [name for name in expected if name != "past_key_values" or use_cache]
    for name in ("attentions", "hidden_states"):
        assert [len(step) for step in result[name]] == [len(step) for step in expected[name]]
        for ours, theirs in zip(result[name], expected[name], strict=True):
            assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
            assert max(map(distance, ours, theirs)) <= 1e-5
    for name in ("scores", "logits"):
        assert max(map(distance, result[name], expected[name])) <= 1e-5
    assert not use_cache or result.past_key_values.get_seq_length() == 9


def test_outputs_that_were_not_requested_are_absent(models: tuple[LlamaForCausalLM, Any]) -> None:
    result = models[0].generate(IDS, max_new_tokens=2, return_dict_in_generate=True)
    assert list(result) == ["sequences", "past_key_values"]
    with pytest.warns(UserWarning, match="output_scores has no effect"):
        assert isinstance(models[0].generate(IDS, max_new_tokens=2, output_scores=True), Tensor)


def test_the_names_of_output_classes_are_those_of_transformers() -> None:
    import puna
    import puna.model.generation.outputs as outputs

    for name in ("GreedySearch", "Sample", "ContrastiveSearch"):
        assert getattr(puna, f"{name}DecoderOnlyOutput") is GenerateDecoderOnlyOutput
    for name in ("BeamSearch", "BeamSample"):
        assert getattr(puna, f"{name}DecoderOnlyOutput") is GenerateBeamDecoderOnlyOutput
    for ours in (GenerateDecoderOnlyOutput, GenerateBeamDecoderOnlyOutput):
        theirs = getattr(transformers.generation, ours.__name__)
        assert list(ours.__dataclass_fields__) == list(theirs.__dataclass_fields__)
    assert outputs.GenerateNonBeamOutput is GenerateDecoderOnlyOutput


@pytest.mark.parametrize("normalised", [False, True])
def test_transition_scores_equal_those_of_transformers(models: tuple[LlamaForCausalLM, Any], normalised: bool) -> None:
    model, reference = models
    out = model.generate(IDS, max_new_tokens=5, return_dict_in_generate=True, output_scores=True)
    scores = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=normalised)
    expected = reference.compute_transition_scores(out.sequences, out.scores, normalize_logits=normalised)
    assert torch.allclose(scores, expected, atol=1e-6) and scores.shape == (2, 5)
    assert (scores <= 0).all() or not normalised


def test_transition_scores_of_beams_equal_those_of_transformers(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, reference = models
    out = reference_call(reference, IDS, num_beams=3, num_return_sequences=2, max_new_tokens=6,
                         eos_token_id=list(range(40)), attention_mask=ONES, return_dict_in_generate=True,
                         output_scores=True)  # fmt: skip
    assert (out.beam_indices < 0).any()
    for normalised in (False, True):
        arguments = (out.sequences, out.scores, out.beam_indices, normalised)
        expected = reference.compute_transition_scores(*arguments)
        assert torch.equal(model.compute_transition_scores(*arguments), expected)


# ---- prompts

PROMPTS: list[dict[str, Any]] = [
    {"inputs": IDS, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])},
    {"inputs": IDS, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).bool()},
    {"inputs": IDS, "attention_mask": ONES, "position_ids": torch.arange(3, 9)[None].expand(2, 6)},
    {"inputs": IDS, "attention_mask": ONES, "position_ids": torch.tensor([[0, 2, 4, 6, 8, 10], [0, 1, 2, 3, 4, 5]])},
    {"input_ids": IDS.int(), "attention_mask": ONES},
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_give_the_tokens_of_transformers(
    models: tuple[LlamaForCausalLM, Any], prompt: dict[str, Any], use_cache: bool
) -> None:
    options = {"max_new_tokens": 6, "use_cache": use_cache, "pad_token_id": 0}
    if "position_ids" in prompt and not use_cache:
        with_cache = models[0].generate(**prompt, max_new_tokens=6, pad_token_id=0)
        assert torch.equal(models[0].generate(**prompt, **options), with_cache)
    else:
        assert torch.equal(models[0].generate(**prompt, **options), reference_call(models[1], **prompt, **options))


def test_embeddings_with_ids_continue_the_embeddings_and_return_the_ids(models: tuple[LlamaForCausalLM, Any]) -> None:
    model, reference = models
    embeds = 1.3 * model.get_input_embeddings()(IDS).detach()
    options = {"inputs_embeds": embeds, "attention_mask": ONES, "max_new_tokens": 6, "pad_token_id": 0}
    result = model.generate(IDS, **options)
    assert torch.equal(result, reference_call(reference, IDS, **options))
    assert torch.equal(result[:, :6], IDS) and torch.equal(model.generate(**options), result[:, 6:])
    assert torch.equal(model.generate(use_cache=False, **options), result[:, 6:])


def test_a_mask_without_a_prompt_gives_the_number_of_rows(models: tuple[LlamaForCausalLM, Any]) -> None:
    result = models[0].generate(attention_mask=torch.ones(3, 1), max_new_tokens=2)
    assert torch.equal(result, models[0].generate(torch.full((3, 1), 1), max_new_tokens=2))


def test_right_padding_is_a_warning_and_runs_as_in_transformers(models: tuple[LlamaForCausalLM, Any]) -> None:
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with pytest.warns(UserWarning, match=r"right padding.*padding_side = 'left'"):
        result = models[0].generate(IDS, attention_mask=mask, max_new_tokens=3)
    expected = reference_call(models[1], IDS, attention_mask=mask, max_new_tokens=3)
    assert torch.equal(result[0], expected[0]) and result.shape == expected.shape
    padded = IDS.masked_fill(mask == 0, 5)
    with pytest.warns(UserWarning, match="right padding"):
        assert models[0].generate(padded, pad_token_id=5, max_new_tokens=3).shape == (2, 9)


def test_padding_that_cannot_be_detected_is_logged(
    models: tuple[LlamaForCausalLM, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        models[0].warnings_issued.clear()
        models[0].generate(IDS, attention_mask=ONES, max_new_tokens=1)
        models[0].generate(IDS[:1], max_new_tokens=1)
        models[0].generate(IDS, pad_token_id=0, max_new_tokens=1)
        assert "attention_mask" not in caplog.text
        models[0].generate(IDS, max_new_tokens=1)
        models[0].generate(IDS, max_new_tokens=1)
    assert caplog.text.count("pass the attention_mask") == 1, "once for a model"


def test_a_missing_pad_token_is_logged(models: tuple[LlamaForCausalLM, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        models[0].generate(IDS[:1], max_new_tokens=1, pad_token_id=0)
        models[0].generate(IDS[:1], max_new_tokens=1, eos_token_id=[])
        assert not caplog.records
        models[0].generate(IDS[:1], max_new_tokens=1, eos_token_id=7)
    assert "pad_token_id is not set; rows that have ended are filled with the eos token, 7" in caplog.text


# ---- caches


@pytest.mark.parametrize("with_config", [False, True])
def test_a_cache_of_transformers_is_read_and_extended(models: tuple[LlamaForCausalLM, Any], with_config: bool) -> None:
    """A chat program passes the same cache object with each longer prompt."""
    model, reference = models
    ours, theirs = (transformers.DynamicCache(**({"config": m.config} if with_config else {})) for m in models)
    texts = [IDS, IDS]
    for turn in range(3):
        options = {"attention_mask": torch.ones_like(texts[0]), "max_new_tokens": 4, "eos_token_id": None}
        texts = [model.generate(texts[0], past_key_values=ours, **options),
                 reference_call(reference, texts[1], past_key_values=theirs, **options)]  # fmt: skip
        assert torch.equal(*texts)
        assert ours.get_seq_length() == theirs.get_seq_length() == 6 + 5 * turn + 3
        texts = [torch.cat((text, IDS[:, :1]), dim=1) for text in texts]


@pytest.mark.parametrize("kind", [tuple, KVCache, lambda layers: transformers.DynamicCache(layers)])
def test_every_kind_of_cache_continues_a_prompt(models: tuple[LlamaForCausalLM, Any], kind: Any) -> None:
    model, _ = models
    expected = model.generate(IDS, max_new_tokens=5)
    with torch.no_grad():
        layers = model(IDS[:, :4]).past_key_values
        out = model(IDS[:, 4:], past_key_values=kind(layers))
        assert distance(out.logits, model(IDS).logits[:, 4:]) <= 1e-5
    assert torch.equal(model.generate(IDS, past_key_values=kind(layers), max_new_tokens=5), expected)


@pytest.mark.parametrize("name", ["dynamic", "static", "offloaded", "offloaded_static", "quantized", "hybrid"])
def test_the_kind_of_cache_does_not_change_the_result(models: tuple[LlamaForCausalLM, Any], name: str) -> None:
    expected = models[0].generate(IDS, max_new_tokens=4)
    assert torch.equal(models[0].generate(IDS, max_new_tokens=4, cache_implementation=name), expected)
    assert torch.equal(models[0].generate(IDS, max_new_tokens=4, prefill_chunk_size=2, disable_compile=True), expected)


# ---- settings


def test_a_configuration_without_token_ids_uses_those_of_the_model(model: LlamaForCausalLM) -> None:
    free = model.generate(IDS, max_new_tokens=12, eos_token_id=None)
    assert free.shape == (2, 18)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = int(free[0, 8]), 0
    expected = model.generate(IDS, max_new_tokens=12)
    assert (expected[0, 9:] == 0).all()
    assert torch.equal(model.generate(IDS, GenerationConfig(max_new_tokens=12)), expected)
    own = GenerationConfig(max_new_tokens=12, eos_token_id=int(free[0, 7]), pad_token_id=5)
    assert (model.generate(IDS, own)[0, 8:] == 5).all()


def test_configurations_of_transformers_are_accepted(models: tuple[LlamaForCausalLM, Any]) -> None:
    settings = transformers.GenerationConfig(max_new_tokens=5, do_sample=True, top_k=4, temperature=0.8)
    torch.manual_seed(1)
    result = models[0].generate(IDS, generation_config=settings)
    torch.manual_seed(1)
    assert torch.equal(result, models[0].generate(IDS, max_new_tokens=5, do_sample=True, top_k=4, temperature=0.8))


def test_use_model_defaults_takes_all_settings_of_the_model(model: LlamaForCausalLM) -> None:
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, top_k=1, eos_token_id=2)
    config = GenerationConfig(repetition_penalty=1.3)
    result = model.generate(IDS, config, use_model_defaults=True)
    assert torch.equal(result, model.generate(IDS, repetition_penalty=1.3, max_new_tokens=7))
    with pytest.warns(UserWarning, match="default max_length"):
        assert model.generate(IDS, config).shape[1] > 13
    assert config.to_diff_dict() == {"repetition_penalty": 1.3}


def test_changes_of_the_model_configuration_reach_generate(model: LlamaForCausalLM) -> None:
    model.config.max_length = 9
    with pytest.warns(UserWarning, match=r"model's configuration was changed.*model\.generation_config"):
        assert model.generate(IDS, eos_token_id=None).shape == (2, 9)
    assert model.generate(IDS, eos_token_id=None).shape == (2, 9)  # the warning is shown once
    model.generation_config.max_length = 8
    model.config.max_length = 10
    assert model.generate(IDS, eos_token_id=None).shape == (2, 8)


def test_settings_of_files_and_keywords_reach_generate(tmp_path: Path, model: LlamaForCausalLM) -> None:
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, max_length=9, eos_token_id=None)
    assert loaded.generate(IDS).shape == (2, 9)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"_from_model_config": True, "max_length": 11, "eos_token_id": []}))
    assert LlamaForCausalLM.from_pretrained(tmp_path).generate(IDS).shape == (2, 11)
    assert LlamaForCausalLM.from_pretrained(tmp_path, max_length=8).generate(IDS).shape == (2, 8)
    file.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_length": 10, "eos_token_id": None}))
    assert LlamaForCausalLM.from_pretrained(tmp_path).generate(IDS).shape == (2, 10)


def test_none_disables_a_filter_or_a_token(models: tuple[LlamaForCausalLM, Any]) -> None:
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 9, "seed": 3}
    model = models[0]
    assert torch.equal(model.generate(IDS, top_k=None, **options), model.generate(IDS, top_k=0, **options))
    assert not torch.equal(model.generate(IDS, top_k=None, **options), model.generate(IDS, top_k=2, **options))
    assert model.generate(IDS, max_new_tokens=40, eos_token_id=None).shape == (2, 46)
    neutral = dict.fromkeys(("num_beams", "do_sample", "temperature", "use_cache", "unknown_argument"))
    assert torch.equal(model.generate(IDS, max_new_tokens=3, **neutral), model.generate(IDS, max_new_tokens=3))


def test_temperature_0_needs_no_sampling(models: tuple[LlamaForCausalLM, Any]) -> None:
    expected = models[0].generate(IDS, max_new_tokens=6)
    for sampled in (True, False):
        result = models[0].generate(IDS, max_new_tokens=6, do_sample=sampled, temperature=0.0, top_p=1.0)
        assert torch.equal(result, expected)
    with pytest.raises(ConfigError, match="num_return_sequences is 2"):
        models[0].generate(IDS, do_sample=True, temperature=0, num_return_sequences=2, max_new_tokens=1)


def test_new_attributes_of_the_configuration_are_accepted(model: LlamaForCausalLM) -> None:
    model.generation_config.foo = "bar"
    model.generation_config.length_penalty = 1.2
    with pytest.warns(UserWarning, match=r"length_penalty is 1\.2, which only beam search uses"):
        assert model.generate(IDS, max_new_tokens=2, foo=3).shape == (2, 8)


def test_the_output_contains_the_cache_object_of_the_call(model: LlamaForCausalLM) -> None:
    cache = transformers.DynamicCache(config=model.config)
    out = model.generate(IDS, past_key_values=cache, max_new_tokens=3, return_dict_in_generate=True)
    assert out.past_key_values is cache and cache.get_seq_length() == 8
    cache = transformers.StaticCache(config=model.config, max_cache_len=20)
    assert torch.equal(model.generate(IDS, past_key_values=cache, max_new_tokens=3), out.sequences)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}])
def test_a_diversity_penalty_without_groups_has_no_effect(
    models: tuple[LlamaForCausalLM, Any], options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = models[0].generate(IDS, max_new_tokens=3, diversity_penalty=0.5, **options)
    assert torch.equal(result, models[0].generate(IDS, max_new_tokens=3, **options))
    assert torch.equal(result, reference_call(models[1], IDS, max_new_tokens=3, diversity_penalty=0.5, **options))


def test_settings_without_effect_are_warnings(models: tuple[LlamaForCausalLM, Any]) -> None:
    with pytest.warns(UserWarning, match=r"top_p is 0\.5.*do_sample=True"):
        models[0].generate(IDS, max_new_tokens=1, top_p=0.5)
    with pytest.warns(UserWarning, match=r"min_length is 30.*ends at 9"):
        models[0].generate(IDS, max_new_tokens=3, min_length=30)
    with pytest.warns(UserWarning, match=r"min_new_tokens is 5.*ends at 9"):
        models[0].generate(IDS, max_new_tokens=3, min_new_tokens=5)


def test_two_limits_are_logged(models: tuple[LlamaForCausalLM, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert models[0].generate(IDS, max_length=30, max_new_tokens=2, pad_token_id=0).shape == (2, 8)
    assert "max_new_tokens takes precedence" in caplog.text


def test_names_are_compared_with_all_arguments(models: tuple[LlamaForCausalLM, Any]) -> None:
    for name, near in (("max_tokens", "max_new_tokens"), ("attention_masks", "attention_mask"), ("stream", "streamer")):
        with pytest.raises(ValueError, match=f"no argument '{name}'.*did you mean '{near}'"):
            models[0].generate(IDS, **{name: 1})
    with pytest.raises(RequestError, match="'token_type_ids'"):
        models[0].generate(IDS, token_type_ids=IDS)


def test_arguments_of_a_subclass_reach_its_forward_pass(model: LlamaForCausalLM) -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * scale
            return out

    scaled = Scaled(model.config).eval()
    scaled.load_state_dict(model.state_dict())
    expected = model.generate(IDS, max_new_tokens=4)
    assert torch.equal(scaled.generate(IDS, max_new_tokens=4), expected)
    negated = scaled.generate(IDS, max_new_tokens=4, scale=-1.0)
    assert not torch.equal(negated, expected) and "scale" in scaled.generation_path


# ---- criteria, time, processes


def test_max_time_ends_after_one_token(models: tuple[LlamaForCausalLM, Any]) -> None:
    assert models[0].generate(IDS, max_new_tokens=20, max_time=0.0, eos_token_id=None).shape == (2, 7)
    start = time.monotonic()
    assert models[0].generate(IDS, max_new_tokens=3, max_time=60.0, eos_token_id=None).shape == (2, 9)
    assert time.monotonic() - start < 30


def test_criteria_receive_all_scores_if_the_call_returns_them(models: tuple[LlamaForCausalLM, Any]) -> None:
    received: list[Any] = []

    def criterion(ids: Tensor, scores: Any, **others: Any) -> bool:
        received.append(scores)
        return ids.shape[1] == 9

    models[0].generate(IDS, max_new_tokens=5, stopping_criteria=[criterion], eos_token_id=None)
    assert [scores.shape for scores in received] == [(2, 67)] * 3
    received.clear()
    models[0].generate(IDS, max_new_tokens=5, stopping_criteria=[criterion], output_scores=True, eos_token_id=None,
                       return_dict_in_generate=True)  # fmt: skip
    assert [len(scores) for scores in received] == [1, 2, 3]


def test_synced_processes_make_the_same_number_of_passes(
    models: tuple[LlamaForCausalLM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, which `all_reduce` simulates, needs 8 passes; this one has finished after 3."""
    passes: list[float] = []

    def all_reduce(unfinished: Tensor) -> None:
        passes.append(float(unfinished))
        unfinished += float(len(passes) <= 8)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    calls: list[int] = []
    handle = models[0].register_forward_pre_hook(lambda *_: calls.append(1))
    result = models[0].generate(IDS, max_new_tokens=3, synced_gpus=True, eos_token_id=None,
                                return_dict_in_generate=True)  # fmt: skip
    handle.remove()
    assert passes == [1.0] * 3 + [0.0] * 6 and len(calls) == 8
    expected = models[0].generate(IDS, max_new_tokens=3, return_dict_in_generate=True, eos_token_id=None)
    assert torch.equal(result.sequences, expected.sequences)
    assert result.past_key_values.length == expected.past_key_values.length


def test_models_that_fsdp_has_sharded_are_synced_by_default(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    reductions: list[float] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: reductions.append(float(tensor)))
    model.generate(IDS, max_new_tokens=2)
    assert not reductions
    model.model.layers[0].__class__ = type("FSDPLlamaDecoderLayer", (type(model.model.layers[0]),), {})
    model.generate(IDS, max_new_tokens=2, eos_token_id=None)
    assert reductions == [1.0, 1.0, 0.0]
    reductions.clear()
    model.generate(IDS, max_new_tokens=2, synced_gpus=False)
    assert not reductions
