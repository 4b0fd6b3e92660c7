"""Methods of transformers 4 that run one strategy: the same results as `generate()` with the corresponding settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import puna
from puna import LlamaForCausalLM, MaxLengthCriteria, StoppingCriteriaList
from puna.errors import PunaError
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import pair, ragged

ENDS, LIMIT = [3, 4, 5, 6, 7], 16
CRITERIA = StoppingCriteriaList([MaxLengthCriteria(LIMIT)])
CONSTRAINTS = [puna.PhrasalConstraint([40, 41]), puna.DisjunctiveConstraint([[50], [51, 52]])]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model, _ = pair(config_of(num_key_value_heads=2, initializer_range=0.15, pad_token_id=0), seed=8)
    model.generation_config.eos_token_id = ENDS
    return model


def prompts(model: LlamaForCausalLM, copies: int = 1, rows: int = 2) -> dict[str, Tensor]:
    """Returns prompts of several lengths, each `copies` times."""
    ids, mask, _ = ragged(model.config, (6, 4)[:rows], "left", seed=1)
    return {"input_ids": ids.repeat_interleave(copies, 0), "attention_mask": mask.repeat_interleave(copies, 0)}


def scorer(cls: Any = puna.BeamSearchScorer, **more: Any) -> Any:
    return cls(batch_size=2, num_beams=4, device="cpu", num_beam_hyps_to_keep=2, max_length=LIMIT, **more)


SEARCHES: dict[str, tuple[dict[str, Any], Any]] = {
    "greedy_search": ({}, lambda model: model.greedy_search(**prompts(model), stopping_criteria=CRITERIA)),
    "sample": (
        {"do_sample": True, "temperature": 1.3, "top_k": 0},
        lambda model: model.sample(
            **prompts(model),
            logits_warper=puna.LogitsProcessorList([puna.TemperatureLogitsWarper(1.3)]),
            stopping_criteria=CRITERIA,
        ),
    ),
    "contrastive_search": (
        {"penalty_alpha": 0.6, "top_k": 4},
        lambda model: model.contrastive_search(
            **prompts(model), penalty_alpha=0.6, top_k=4, stopping_criteria=CRITERIA, sequential=True
        ),
    ),
    "group_beam_search": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 2},
        lambda model: model.group_beam_search(
            **prompts(model, 4),
            beam_scorer=scorer(num_beam_groups=2),
            logits_processor=puna.LogitsProcessorList([puna.HammingDiversityLogitsProcessor(0.7, 4, 2)]),
            stopping_criteria=CRITERIA,
        ),
    ),
    "constrained_beam_search": (
        {"num_beams": 4, "constraints": CONSTRAINTS, "num_return_sequences": 2},
        lambda model: model.constrained_beam_search(
            **prompts(model, 4),
            constrained_beam_scorer=scorer(puna.ConstrainedBeamSearchScorer, constraints=CONSTRAINTS),
            stopping_criteria=CRITERIA,
        ),
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_method_returns_the_texts_of_generate(model: LlamaForCausalLM, name: str) -> None:
    options, search = SEARCHES[name]
    torch.manual_seed(4)
    expected = model.generate(**prompts(model), max_length=LIMIT, **options)
    torch.manual_seed(4)
    with torch.no_grad():
        assert torch.equal(search(model), expected)


def test_assisted_decoding_returns_the_text_of_generate(model: LlamaForCausalLM) -> None:
    expected = model.generate(**prompts(model, rows=1), max_length=LIMIT)
    result = model.assisted_decoding(**prompts(model, rows=1), assistant_model=model, stopping_criteria=CRITERIA)
    assert torch.equal(result, expected)


def test_methods_return_outputs_and_settings_of_the_call(model: LlamaForCausalLM) -> None:
    out = model.greedy_search(
        **prompts(model), stopping_criteria=CRITERIA, eos_token_id=[], output_scores=True, output_hidden_states=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert out.sequences.shape == (2, LIMIT) and len(out.scores) == len(out.hidden_states) == LIMIT - 6
    assert model.generation_config.eos_token_id == ENDS
    assert out.scores[0].requires_grad  # as in transformers 4, gradients are not disabled
    plain = model.beam_search(prompts(model, 4)["input_ids"], scorer(), stopping_criteria=CRITERIA)
    assert plain.shape[0] == 4
    with pytest.warns(UserWarning, match="max_length is deprecated"):
        assert torch.equal(model.greedy_search(**prompts(model), max_length=8, eos_token_id=[]), out.sequences[:, :8])
    with pytest.raises(PunaError, match="there is no argument 'top_k'"):
        model.greedy_search(**prompts(model), stopping_criteria=CRITERIA, top_k=3)
    with pytest.raises(PunaError, match=r"has 2 rows; it must have 4 \(num_beams\) per prompt"):
        model.beam_search(**prompts(model), beam_scorer=scorer(), stopping_criteria=CRITERIA)


def test_a_missing_limit_is_reported(model: LlamaForCausalLM) -> None:
    with pytest.warns(UserWarning, match="there are no stopping_criteria"):
        assert model.greedy_search(**prompts(model), eos_token_id=list(range(67))).shape == (2, 7)


class MostLikely(puna.BeamScorer):
    """A scorer of a user's own, which keeps the best continuations of one prompt."""

    num_beams = 2
    is_done = False

    def process(self, ids: Tensor, scores: Tensor, tokens: Tensor, beams: Tensor, **more: Any) -> dict[str, Tensor]:
        assert more["pad_token_id"] == 0 and more["eos_token_id"] is None
        return {
            "next_beam_scores": scores[0, :2], "next_beam_tokens": tokens[0, :2], "next_beam_indices": beams[0, :2]
        }  # fmt: skip

    def finalize(self, ids: Tensor, scores: Tensor, *others: Any, **more: Any) -> dict[str, Any]:
        return {"sequences": ids[:1], "sequence_scores": scores[:1], "beam_indices": None}


def test_a_scorer_of_ones_own_is_used(model: LlamaForCausalLM) -> None:
    prompt = prompts(model)["input_ids"][:1]
    result = model.beam_search(prompt.repeat(2, 1), MostLikely(), stopping_criteria=CRITERIA, eos_token_id=[])
    assert torch.equal(result, model.generate(prompt, num_beams=2, max_length=LIMIT, eos_token_id=[]))
