"""Classifier-free guidance and watermarks compared with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import puna
from puna.errors import PunaError
from puna.model import LlamaForCausalLM
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair

IDS = torch.randint(3, 67, (2, 6), generator=torch.Generator().manual_seed(3))
NEGATIVE = torch.tensor([[0, 0, 9, 12], [20, 21, 22, 23]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
SYNTHID = {"keys": [654, 400, 836, 123], "ngram_len": 4, "context_history_size": 8, "sampling_table_size": 1024}


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, Any]:
    return pair(config_of(num_key_value_heads=2, initializer_range=0.2), seed=4)


def steps(processor: Any, tokens: int = 4) -> torch.Tensor:
    """Returns the scores of some steps, each continued with the most likely token."""
    ids, results = IDS, []
    for step in range(tokens):
        scores = torch.randn(2, 67, generator=torch.Generator().manual_seed(step)) * 2
        results.append(processor(ids, scores))
        ids = torch.cat((ids, results[-1].argmax(dim=-1, keepdim=True)), dim=1)
    return torch.stack(results)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    ("scale", "arguments"),
    [
        (1.5, {}),
        (1.0, {}),
        (2.5, {"unconditional_ids": NEGATIVE}),
        (0.5, {"unconditional_ids": NEGATIVE, "unconditional_attention_mask": MASK}),
    ],
)
@torch.no_grad()
def test_guided_scores_equal_those_of_transformers(
    models: tuple[LlamaForCausalLM, Any], scale: float, arguments: dict[str, Any], use_cache: bool
) -> None:
    name = "UnbatchedClassifierFreeGuidanceLogitsProcessor"
    ours = getattr(puna, name)(scale, models[0], use_cache=use_cache, **arguments)
    reference = getattr(transformers, name)(scale, models[1], use_cache=use_cache, **arguments)
    torch.testing.assert_close(steps(ours), steps(reference), rtol=0, atol=1e-4)


@torch.no_grad()
def test_one_negative_prompt_is_used_for_all_rows(models: tuple[LlamaForCausalLM, Any]) -> None:
    make = lambda ids: puna.UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, models[0], ids)  # noqa: E731
    torch.testing.assert_close(steps(make(NEGATIVE[1:])), steps(make(NEGATIVE[[1, 1]])))
    with pytest.raises(PunaError, match=r"negative_prompt_ids has the shape \(2, 4\).* 3 rows"):
        make(NEGATIVE)(IDS[[0, 1, 0]], torch.zeros(3, 67))


def test_guidance_of_two_halves_equals_that_of_transformers() -> None:
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    name = "ClassifierFreeGuidanceLogitsProcessor"
    results = [getattr(module, name)(1.7)(IDS, scores) for module in (puna, transformers)]
    assert torch.equal(*results)
    with pytest.raises(PunaError, match="3 rows of scores for 2 rows of ids"):
        puna.ClassifierFreeGuidanceLogitsProcessor(1.7)(IDS, scores[:3])


@pytest.mark.parametrize(
    "settings",
    [{}, {"bias": 3.5, "greenlist_ratio": 0.5, "hashing_key": 7, "context_width": 3}, {"seeding_scheme": "selfhash"},
     {"seeding_scheme": "selfhash", "context_width": 4}],
)  # fmt: skip
def test_watermarks_equal_those_of_transformers(settings: dict[str, Any]) -> None:
    ours = puna.WatermarkLogitsProcessor(67, "cpu", **settings)
    reference = transformers.WatermarkLogitsProcessor(67, "cpu", **settings)
    assert torch.equal(steps(ours), steps(reference))


def test_a_watermark_that_lacks_tokens_warns() -> None:
    processor = puna.WatermarkLogitsProcessor(67, "cpu", context_width=7)
    with pytest.warns(UserWarning, match="needs 7 tokens .* a row has 6"):
        assert torch.equal(processor(IDS, torch.zeros(2, 67)), torch.zeros(2, 67))


@pytest.mark.parametrize("settings", [{}, {"seeding_scheme": "selfhash", "context_width": 2}])
@pytest.mark.parametrize("repeated", [True, False])
def test_detected_watermarks_equal_those_of_transformers(
    models: tuple[LlamaForCausalLM, Any], settings: dict[str, Any], repeated: bool
) -> None:
    marked = puna.WatermarkLogitsProcessor(67, "cpu", bias=6.0, **settings)
    ids = IDS
    for step in range(30):
        scores = torch.randn(2, 67, generator=torch.Generator().manual_seed(step))
        ids = torch.cat((ids, marked(ids, scores).argmax(dim=-1, keepdim=True)), dim=1)
    random = torch.randint(3, 67, ids.shape, generator=torch.Generator().manual_seed(9))
    results = [
        module.WatermarkDetector(
            model.config, "cpu", module.WatermarkingConfig(**settings), ignore_repeated_ngrams=repeated
        )
        for module, model in zip((puna, transformers), models, strict=True)
    ]
    for text in (ids, random, torch.cat((torch.full((2, 1), 1), ids), dim=1)):
        ours, reference = (detector(text, return_dict=True) for detector in results)
        for field in vars(ours):
            assert (getattr(ours, field) == getattr(reference, field)).all(), field
        assert (results[0](text) == ours.prediction).all()
    assert results[0](ids).all() and not results[0](random).any()
    with pytest.raises(PunaError, match="some rows start with bos_token_id"):
        results[0](torch.tensor([[1, 5, 6], [5, 6, 7]]))
    with pytest.raises(PunaError, match="the rows have 1 tokens"):
        results[0](torch.tensor([[5], [6]]))


@pytest.mark.parametrize("settings", [{}, {"skip_first_ngram_calls": True}, {"debug_mode": True}])
def test_synthid_equals_that_of_transformers(settings: dict[str, Any]) -> None:
    name = "SynthIDTextWatermarkLogitsProcessor"
    arguments = {**SYNTHID, "sampling_table_seed": 3, "device": "cpu", **settings}
    ours, reference = (getattr(module, name)(**arguments) for module in (puna, transformers))
    ids, scores = torch.randint(0, 3, (2, 40), generator=torch.Generator().manual_seed(0)), torch.randn(2, 67)
    scores[0, :30] = float("-inf")
    for tokens in range(10, 40):  # few different ids, so that contexts occur again
        torch.testing.assert_close(ours(ids[:, :tokens], scores), reference(ids[:, :tokens], scores), rtol=0, atol=1e-6)
    assert torch.equal(ours.compute_g_values(ids), reference.compute_g_values(ids))
    assert torch.equal(ours.compute_context_repetition_mask(ids), reference.compute_context_repetition_mask(ids))
    assert torch.equal(ours.compute_eos_token_mask(ids, 2), reference.compute_eos_token_mask(ids, 2))
    assert ours.expected_mean_g_value(67) == reference.expected_mean_g_value(67)
    with pytest.raises(PunaError, match=r"the shape \(40,\)"):
        ours(ids[0], scores)


@pytest.mark.parametrize(
    ("name", "settings"), [("WatermarkingConfig", {"bias": 1.5}), ("SynthIDTextWatermarkingConfig", SYNTHID)]
)
def test_watermark_settings_have_the_methods_of_transformers(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    ours, reference = (getattr(module, name)(**settings) for module in (puna, transformers))
    assert ours.to_dict() == reference.to_dict() and sorted(ours) == sorted(reference)
    assert json.loads(ours.to_json_string()) == json.loads(reference.to_json_string())
    ours.to_json_file(tmp_path / "settings.json")
    assert json.loads((tmp_path / "settings.json").read_text()) == ours.to_dict()
    assert getattr(puna, name).from_dict(ours.to_dict(), unknown=1).to_dict() == ours.to_dict()
    ours.update(bias=9.0, keys=[1])
    reference.update(bias=9.0, keys=[1])
    assert ours.to_dict() == reference.to_dict()
    ours.validate()


@pytest.mark.parametrize(
    "settings", [{"seeding_scheme": "right"}, {"greenlist_ratio": 0.0}, {"greenlist_ratio": 1.0}, {"context_width": 0}]
)
def test_invalid_watermark_settings_are_errors(settings: dict[str, Any]) -> None:
    with pytest.raises(PunaError, match=next(iter(settings))):
        puna.WatermarkLogitsProcessor(67, "cpu", **settings)


def test_too_large_a_table_is_an_error() -> None:
    with pytest.raises(PunaError, match="sampling_table_size is 16777217"):
        puna.SynthIDTextWatermarkingConfig(**{**SYNTHID, "sampling_table_size": 2**24 + 1}).validate()
