"""Compares puna's model with transformers': logits, states, attentions, losses, gradients and caches."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRMSNorm as ReferenceRMSNorm

from puna.model import LlamaForSequenceClassification
from puna.model.activations import ACTIVATIONS
from puna.model.llama import LlamaRMSNorm
from tests.helpers.configurations import CONFIGURATIONS, config_of
from tests.helpers.reference_models import distance, pair, ragged

LIMIT = 1e-5
LENGTHS = (9, 14, 5)
CASES = list(product(CONFIGURATIONS, ("left", "right")))


def batch(config: Any, side: str, lengths: tuple[int, ...] = LENGTHS) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the arguments of forward, and a mask that is true for real tokens.

    A text's first token is not a label: with padding on the left, the token would be predicted from a padding position,
    whose logits are undefined.
    """
    ids, mask, positions = ragged(config, lengths, side)
    labels = ids.masked_fill((mask == 0) | (positions == 0), -100)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    return inputs, mask.bool()


@pytest.mark.parametrize(("name", "side"), CASES)
def test_logits_states_attentions_and_loss_equal_those_of_transformers(name: str, side: str) -> None:
    model, reference = pair(config_of(**CONFIGURATIONS[name]))
    inputs, real = batch(model.config, side)
    with torch.no_grad():
        fused = model(**inputs, output_hidden_states=True)
        eager = model(**inputs, output_hidden_states=True, output_attentions=True)
        expected = reference(**inputs, output_hidden_states=True, output_attentions=True)
    assert fused.attentions is None
    for out in (fused, eager):
        assert distance(out.logits, expected.logits, real) <= LIMIT
        assert distance(out.loss, expected.loss) <= LIMIT
        assert len(out.hidden_states) == model.config.num_hidden_layers + 1
        for state, expected_state in zip(out.hidden_states, expected.hidden_states, strict=True):
            assert distance(state, expected_state, real) <= LIMIT
    for weights, expected_weights in zip(eager.attentions, expected.attentions, strict=True):
        assert distance(weights.transpose(1, 2), expected_weights.transpose(1, 2), real) <= LIMIT


@pytest.mark.parametrize(("name", "side"), CASES)
def test_logits_of_three_cached_chunks_equal_those_of_transformers(name: str, side: str) -> None:
    model, reference = pair(config_of(**CONFIGURATIONS[name]), seed=1)
    inputs, real = batch(model.config, side)
    cache, reference_cache = None, DynamicCache(config=reference.config)
    with torch.no_grad():
        all_logits = reference(**inputs).logits
        for start, stop in ((0, 6), (6, 13), (13, 14)):
            chunk = {
                "input_ids": inputs["input_ids"][:, start:stop],
                "attention_mask": inputs["attention_mask"][:, :stop],
                "position_ids": inputs["position_ids"][:, start:stop],
            }
            out = model(**chunk, past_key_values=cache, use_cache=True)
            expected = reference(**chunk, past_key_values=reference_cache, use_cache=True)
            cache = out.past_key_values
            assert cache.length == stop
            if real[:, start:stop].any():
                assert distance(out.logits, expected.logits, real[:, start:stop]) <= LIMIT
                assert distance(out.logits, all_logits[:, start:stop], real[:, start:stop]) <= LIMIT


@pytest.mark.parametrize("name", ["mqa_tied", "all_biases_tied", "yarn_narrow_heads", "dynamic_mqa", "longrope_gqa4"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_transformers(name: str, checkpointing: bool) -> None:
    model, reference = pair(config_of(**CONFIGURATIONS[name]), seed=2)
    inputs, _ = batch(model.config, "right")
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**inputs).loss.backward()
    reference(**inputs).loss.backward()
    expected = dict(reference.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(expected)
    for key, parameter in model.named_parameters():
        assert distance(parameter.grad, expected[key].grad) <= LIMIT, key


@pytest.mark.parametrize("mode", ["inputs_embeds", "mask_4d", "no_mask", "no_positions"])
def test_logits_for_embeddings_4d_masks_and_missing_arguments_equal_those_of_transformers(mode: str) -> None:
    model, reference = pair(config_of(num_key_value_heads=2), seed=3)
    inputs, real = batch(model.config, "right")
    if mode == "inputs_embeds":
        embeds = torch.randn(3, 14, model.config.hidden_size)
        inputs = {**inputs, "inputs_embeds": embeds}
        del inputs["input_ids"]
    if mode == "mask_4d":
        allowed = torch.ones(14, 14, dtype=torch.bool).tril()[None, None] & real[:, None, None]
        allowed = allowed & (torch.rand(3, 1, 14, 14) > 0.3) | torch.eye(14, dtype=torch.bool)
        inputs["attention_mask"] = torch.zeros(3, 1, 14, 14).masked_fill(~allowed, torch.finfo(torch.float32).min)
    if mode == "no_mask":
        del inputs["attention_mask"]
        real = torch.ones_like(real)
    if mode == "no_positions":
        del inputs["position_ids"]
    with torch.no_grad():
        result, expected = model(**inputs), reference(**inputs)
    assert distance(result.logits, expected.logits, real) <= LIMIT
    assert distance(result.loss, expected.loss) <= LIMIT


@pytest.mark.parametrize(
    "act",
    sorted(set(ACTIVATIONS) - {"silu", "gelu_new"}),  # these two are in CONFIGURATIONS
)
def test_logits_with_every_activation_equal_those_of_transformers(act: str) -> None:
    model, reference = pair(config_of(hidden_act=act, num_hidden_layers=1), seed=4)
    inputs, real = batch(model.config, "right")
    with torch.no_grad():
        assert distance(model(**inputs).logits, reference(**inputs).logits, real) <= LIMIT
    assert dict(model.named_modules()).keys() == dict(reference.named_modules()).keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32(dtype: torch.dtype) -> None:
    model, reference = pair(config_of(num_key_value_heads=2, initializer_range=0.1), seed=5)
    inputs, real = batch(model.config, "left")
    with torch.no_grad():
        exact = reference(**inputs).logits
        reference_error = distance(reference.to(dtype)(**inputs).logits.float(), exact, real)
        result = model.to(dtype)(**inputs).logits
    assert result.dtype == dtype
    assert distance(result.float(), exact, real) <= 1.5 * reference_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalised_values_are_cast_back_before_they_are_scaled(dtype: torch.dtype) -> None:
    torch.manual_seed(8)
    norm, reference = LlamaRMSNorm(64, 1e-5).to(dtype), ReferenceRMSNorm(64, 1e-5).to(dtype)
    with torch.no_grad():
        norm.weight.normal_()
        reference.weight.copy_(norm.weight)
        x = torch.randn(9, 64, dtype=dtype) * 3
        assert torch.equal(norm(x), reference(x))


def test_outputs_of_the_base_model_equal_those_of_transformers() -> None:
    model, reference = pair(config_of(num_key_value_heads=2), seed=6)
    ids, mask, positions = ragged(model.config, LENGTHS, "right")
    inputs = {
        "attention_mask": mask,
        "position_ids": positions,
        "output_hidden_states": True,
        "output_attentions": True,
    }
    with torch.no_grad():
        result = model.model(ids, **inputs)
        expected = reference.model(ids, **inputs)
        hidden, cache, states, weights = model.model(ids, **inputs, use_cache=True, return_dict=False)
    assert distance(result.last_hidden_state, expected.last_hidden_state, mask.bool()) <= LIMIT
    assert torch.equal(hidden, result.last_hidden_state)
    assert torch.equal(states[-1], hidden)
    assert len(cache) == len(weights) == 2
    assert cache[0][0].shape == (3, 2, 14, 12)


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_and_losses_of_the_classifier_equal_those_of_transformers(labels: int) -> None:
    config = config_of(num_labels=labels, pad_token_id=0, num_key_value_heads=2)
    model, reference = pair(config, 7, LlamaForSequenceClassification, "LlamaForSequenceClassification")
    ids, mask, positions = ragged(config, LENGTHS, "right")
    target = torch.tensor([0.2, -1.0, 3.0]) if labels == 1 else torch.tensor([2, 0, 1])
    with torch.no_grad():
        for side in ("left", "right"):
            ids, mask, positions = ragged(config, LENGTHS, side)
            result = model(ids, attention_mask=mask, position_ids=positions, labels=target)
            expected = reference(ids, attention_mask=mask, position_ids=positions, labels=target)
            assert distance(result.logits, expected.logits) <= LIMIT
            assert distance(result.loss, expected.loss) <= LIMIT
