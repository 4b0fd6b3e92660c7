"""Arguments of forward and generate: errors with clear messages, and unusual values that must be accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import ConfigError, RequestError
from puna.model import KVCache, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from tests.helpers.configurations import DYNAMIC, config_of, longrope
from tests.helpers.reference_models import distance, pair

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    causal_lm: LlamaForCausalLM = pair(config_of(num_key_value_heads=2))[0]
    return causal_lm


# ---- forward

INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": IDS.float()}, r"input_ids.*float32.*int64"),
    ({"input_ids": IDS.tolist()}, r"input_ids is a list.*torch.tensor"),
    ({"input_ids": {"input_ids": IDS}}, r"input_ids is a dict.*\*\*inputs"),
    ({"input_ids": "a text"}, r"input_ids is a str.*tokenizer\("),
    ({"input_ids": IDS[:0]}, r"input_ids has shape \(0, 7\).*1 row"),
    ({"inputs_embeds": torch.zeros(2, 7, 40)}, r"inputs_embeds has shape \(2, 7, 40\).*\(batch, tokens, 48\)"),
    ({"inputs_embeds": torch.zeros(7, 48)}, r"inputs_embeds has shape \(7, 48\)"),
    ({"inputs_embeds": torch.zeros(0, 7, 48)}, r"inputs_embeds has shape \(0, 7, 48\)"),
    ({"inputs_embeds": torch.zeros(2, 7, 48, dtype=torch.long)}, r"inputs_embeds.*int64"),
    ({"input_ids": IDS, "logits_to_keep": -2}, r"logits_to_keep is -2.*0 or more"),
    ({"input_ids": IDS, "logits_to_keep": torch.ones(1, 2)}, r"logits_to_keep.*1-D"),
]


@pytest.mark.parametrize(("inputs", "text"), INPUTS)
def test_errors_name_the_input_and_its_value(model: LlamaForCausalLM, inputs: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        model(**inputs)


LABELS: list[tuple[Tensor, str]] = [
    (IDS[:, :5], r"labels has shape \(2, 5\).*\(2, 7\)"),
    (IDS[0], r"labels has shape \(7,\).*\(2, 7\)"),
    (IDS.float(), r"labels.*float32"),
    (torch.full_like(IDS, 67), r"labels holds 67.*0 to 66.*-100"),
    (torch.full_like(IDS, -1), r"labels holds -1.*0 to 66.*-100"),
]


@pytest.mark.parametrize(("labels", "text"), LABELS)
def test_invalid_labels_of_a_language_model_are_errors(model: LlamaForCausalLM, labels: Tensor, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        model(IDS, labels=labels)


def test_labels_of_32_bits_are_accepted(model: LlamaForCausalLM) -> None:
    labels = IDS.clone()
    labels[:, :3] = -100
    assert torch.equal(model(IDS, labels=labels.int()).loss, model(IDS, labels=labels).loss)


CLASSIFIER_LABELS: list[tuple[int, str | None, Tensor, str]] = [
    (3, None, torch.tensor([1]), r"labels has shape \(1,\).*\(2,\)"),
    (3, None, torch.tensor([1, 3]), r"labels holds 3.*0 to 2"),
    (3, "single_label_classification", torch.tensor([1.0, 2.0]), r"labels.*float32"),
    (3, None, torch.tensor([1.0, 2.0]), r"labels has shape \(2,\).*\(2, 3\)"),
    (1, None, torch.tensor([1.0]), r"labels has shape \(1,\).*\(2, 1\)"),
    (3, "regression", torch.tensor([1.0, 2.0]), r"labels has shape \(2,\).*\(2, 3\)"),
]


@pytest.mark.parametrize(("count", "problem", "labels", "text"), CLASSIFIER_LABELS)
def test_invalid_labels_of_a_classifier_are_errors(count: int, problem: str | None, labels: Tensor, text: str) -> None:
    classifier = LlamaForSequenceClassification(config_of(num_labels=count, problem_type=problem))
    with pytest.raises(RequestError, match=text):
        classifier(IDS, labels=labels)


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForCausalLM, LlamaForSequenceClassification])
@pytest.mark.parametrize(
    ("field", "value", "text"),
    [("num_key_value_heads", 3, r"num_key_value_heads is 3.*divide"), ("pad_token_id", 67, r"pad_token_id is 67.*66")],
)
def test_the_fields_of_a_configuration_are_checked_when_a_model_is_built(
    kind: Any, field: str, value: int, text: str
) -> None:
    config = config_of()
    setattr(config, field, value)
    with pytest.raises(ConfigError, match=text):
        kind(config)


# ---- plain tuples as caches: if the cached keys are unrotated and there is padding, the tuple lacks their positions


@pytest.mark.parametrize("settings", [DYNAMIC, longrope(12, original=8)])
@torch.no_grad()
def test_a_plain_tuple_without_positions_is_an_error_with_padding(settings: dict[str, Any]) -> None:
    model: LlamaForCausalLM = pair(config_of(rope_scaling=settings, max_position_embeddings=8))[0]
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(IDS[:, :6], attention_mask=mask[:, :6], position_ids=positions[:, :6]).past_key_values
    step: dict[str, Any] = {"input_ids": IDS[:, 6:], "attention_mask": mask, "position_ids": positions[:, 6:]}
    expected = model(IDS, attention_mask=mask, position_ids=positions).logits[:, 6:]
    assert distance(model(past_key_values=cache, **step).logits, expected) <= 1e-5
    rebuilt = KVCache(tuple(cache), cache.positions)
    assert distance(model(past_key_values=rebuilt, **step).logits, expected) <= 1e-5
    for incomplete in (tuple(cache), KVCache(tuple(cache))):
        with pytest.raises(RequestError, match=r"positions.*padding.*KVCache"):
            model(past_key_values=incomplete, **step)
        with pytest.raises(RequestError, match=r"positions.*KVCache"):  # the positions show padding
            model(past_key_values=incomplete, **{**step, "attention_mask": None})


@torch.no_grad()
def test_a_plain_tuple_is_accepted_without_padding() -> None:
    model: LlamaForCausalLM = pair(config_of(rope_scaling=DYNAMIC, max_position_embeddings=4))[0]
    cache = tuple(model(IDS[:, :4]).past_key_values)
    mask = torch.ones_like(IDS)
    for arguments in ({}, {"attention_mask": mask, "position_ids": torch.arange(4, 7)[None]}):
        assert distance(model(IDS[:, 4:], past_key_values=cache, **arguments).logits, model(IDS).logits[:, 4:]) <= 1e-5


# ---- generate

PROMPTS: list[tuple[dict[str, Any], str]] = [
    ({"inputs": IDS[0]}, r"input_ids has shape \(7,\).*\(batch, tokens\)"),
    ({"inputs": IDS.tolist()}, r"input_ids is a list.*tensor"),
    ({"inputs": IDS[:, :0]}, r"input_ids has shape \(2, 0\)"),
    ({"inputs": IDS[:0]}, r"input_ids has shape \(0, 7\)"),
    ({"inputs": IDS.float()}, r"input_ids.*float32"),
    ({"inputs_embeds": torch.zeros(7, 48)}, r"inputs_embeds has shape \(7, 48\)"),
    ({"inputs": IDS, "attention_mask": torch.ones(7)}, r"attention_mask has shape \(7,\); it must be 2-D"),
    ({"inputs": IDS, "attention_mask": torch.ones(2, 4)}, r"attention_mask has shape \(2, 4\).*7 tokens"),
    ({"inputs": IDS, "attention_mask": torch.ones(2, 9)}, r"attention_mask has shape \(2, 9\).*7 tokens"),
    ({"inputs_embeds": torch.zeros(2, 7, 48), "attention_mask": torch.ones(2, 4)}, r"\(2, 4\).*7 tokens"),
    ({"inputs": IDS, "do_sample": True, "seed": 2**70}, r"seed is 1180591620717411303424.*2\^64"),
    ({"inputs": IDS, "do_sample": True, "seed": 1.5}, r"seed is 1.5"),
]


@pytest.mark.parametrize(("arguments", "text"), PROMPTS)
def test_errors_name_the_prompt_argument(model: LlamaForCausalLM, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(RequestError, match=text):
        model.generate(**arguments, max_new_tokens=2)


@pytest.mark.parametrize("width", [3, 6, 8, 10, 12])
def test_the_width_of_a_mask_with_a_cache_is_checked(model: LlamaForCausalLM, width: int) -> None:
    """Two widths are valid: the number of ids, and the number of cached tokens plus the number of ids."""
    with torch.no_grad():
        cache = model(IDS[:, :4]).past_key_values
    with pytest.raises(RequestError, match=rf"attention_mask has shape \(2, {width}\).*7 tokens.*4 cached"):
        model.generate(IDS, past_key_values=cache, attention_mask=torch.ones(2, width), max_new_tokens=2)
    for valid in (7, 11):
        ids = model.generate(IDS, past_key_values=cache, attention_mask=torch.ones(2, valid), max_new_tokens=2)
        assert ids.shape == (2, 9)


@pytest.mark.parametrize(("cached", "width"), [(0, 4), (0, 8), (4, 5), (4, 12)])
def test_prepare_inputs_refuses_a_mask_of_an_invalid_length(model: LlamaForCausalLM, cached: int, width: int) -> None:
    with torch.no_grad():
        cache = model(IDS[:, :cached]).past_key_values if cached else None
    with pytest.raises(RequestError, match=rf"attention_mask has shape \(2, {width}\)"):
        model.prepare_inputs_for_generation(IDS, past_key_values=cache, attention_mask=torch.ones(2, width))


UNSUPPORTED_ARGUMENTS: list[tuple[str, Any, Any]] = [
    ("use_mtp", True, None),
    ("speculation_type", "dflash", None),
]


@pytest.mark.parametrize(("name", "value", "neutral"), UNSUPPORTED_ARGUMENTS)
def test_unsupported_arguments_and_settings_raise_the_same_error(
    model: LlamaForCausalLM, name: str, value: Any, neutral: Any
) -> None:
    errors = []
    for arguments in ({name: value}, {"generation_config": GenerationConfig(**{name: value})}):
        with pytest.raises(RequestError, match=rf"{name}.*not supported") as error:
            model.generate(IDS, max_new_tokens=2, **arguments)
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert model.generate(IDS, max_new_tokens=2, **{name: neutral}).shape[0] == 2


def test_the_error_for_an_unknown_argument_names_it(model: LlamaForCausalLM) -> None:
    with pytest.raises(RequestError, match=r"generate\(\) has no argument 'max_tokens'"):
        model.generate(IDS, max_tokens=6)


@pytest.mark.parametrize(
    ("value", "sample"),
    [*((float(name), True) for name in ("nan", "inf", "-inf")), (float("nan"), False), (-float("inf"), False)],
)  # greedy search chooses an infinite score, as transformers does
def test_logits_that_are_not_finite_are_an_error(model: LlamaForCausalLM, value: float, sample: bool) -> None:
    def damage(ids: Tensor, logits: Tensor) -> Tensor:
        logits[1] = value
        return logits

    with pytest.raises(RequestError, match=rf"row 1.*{value}"):
        model.generate(IDS, max_new_tokens=2, do_sample=sample, logits_processor=[damage])


@pytest.mark.parametrize("fields", [{"max_new_tokens": 4}, {"max_length": 66}])
def test_an_answer_beyond_the_context_is_a_warning(fields: dict[str, Any]) -> None:
    model = LlamaForCausalLM(config_of())
    ids = torch.randint(3, 67, (1, 62), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="65 tokens, more than the model's context.*64"):
        result = model.generate(ids, eos_token_id=None, **fields)
    assert result.shape == (1, 66)
    assert model.generate(ids, eos_token_id=None, max_new_tokens=2).shape == (1, 64)
