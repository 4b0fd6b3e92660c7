"""Texts and scores of each strategy compared with those of transformers for equal weights in float32.

Beam search, beam sampling, assisted generation and prompt lookup are compared with the installed release. Transformers
5 has no diverse, constrained or contrastive search, no DoLa, and no methods such as `beam_search`: the texts of 4.34.1
and, for DoLa, of 4.52.4 are recorded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import Tensor
from transformers.generation import candidate_generator

import puna
from puna import LlamaConfig
from puna.errors import PunaError
from puna.model.generation.outputs import GenerateOutput
from tests.helpers.reference_models import transformers_config
from tests.model.generation.strategies.cases import (
    FAMILIES,
    RELEASES,
    ROOT,
    Call,
    constraint_of,
    embedded_call,
    golden_call,
    random_call,
    run_release,
)

RECORDS: dict[str, list[dict[str, Any]]] = json.loads((Path(__file__).parent / "recorded.json").read_text())
RECORDED = sorted(RECORDS.keys() & FAMILIES.keys())
INSTALLED = sorted(FAMILIES.keys() - RECORDS.keys())


def run_installed(call: Call) -> Any:
    """Returns the output of the installed release of transformers."""
    reference = transformers.LlamaForCausalLM(transformers_config(call.model.config)).eval()
    reference.load_state_dict(call.model.state_dict())
    options = dict(call.options)
    if call.assistant is not None:
        config = transformers_config(LlamaConfig(**call.assistant["config"]))
        options["assistant_model"] = assistant = transformers.LlamaForCausalLM(config).eval()
        assistant.load_state_dict(call.assistant["weights"])
        for name, value in call.assistant["settings"].items():
            setattr(assistant.generation_config, name, value)
    torch.manual_seed(call.seed)
    # With scikit-learn, transformers adapts the confidence at which an assistant stops, and so draws other tokens.
    with mock.patch.object(candidate_generator, "is_sklearn_available", return_value=False):
        return reference.generate(
            call.ids, attention_mask=call.mask, return_dict_in_generate=True, output_scores=True, **options
        )


def direct_search(call: Call) -> GenerateOutput:
    """Returns the output of the method of transformers 4 that runs the beam search of the call."""
    options, ends = call.options, call.options["eos_token_id"]
    beams, length = options["num_beams"], call.ids.shape[1]
    processors: list[Any] = []
    if (penalty := options.get("repetition_penalty")) is not None:
        processors.append(puna.RepetitionPenaltyLogitsProcessor(penalty))
    if (size := options.get("no_repeat_ngram_size")) is not None:
        processors.append(puna.NoRepeatNGramLogitsProcessor(size))
    if (minimum := options.get("min_new_tokens")) is not None:
        processors.append(puna.MinNewTokensLengthLogitsProcessor(length, minimum, ends))
    limit = length + options["max_new_tokens"]
    scorer = puna.BeamSearchScorer(
        len(call.ids), beams, "cpu", options.get("length_penalty", 1.0), options.get("early_stopping", False),
        options.get("num_return_sequences", 1), max_length=limit,
    )  # fmt: skip
    keep = len(ends) + 1 if isinstance(ends, list) else 2
    warpers: list[Any] = []
    if (temperature := options.get("temperature")) is not None:
        warpers.append(puna.TemperatureLogitsWarper(temperature))
    if options.get("top_k"):
        warpers.append(puna.TopKLogitsWarper(options["top_k"], min_tokens_to_keep=keep))
    if (top_p := options.get("top_p")) is not None:
        warpers.append(puna.TopPLogitsWarper(top_p, min_tokens_to_keep=keep))
    more: dict[str, Any] = {"logits_warper": puna.LogitsProcessorList(warpers)} if "do_sample" in options else {}
    method = call.model.beam_sample if more else call.model.beam_search
    torch.manual_seed(call.seed)
    with torch.no_grad():
        return method(
            call.ids.repeat_interleave(beams, 0),
            scorer,
            logits_processor=puna.LogitsProcessorList(processors),
            stopping_criteria=puna.StoppingCriteriaList([puna.MaxLengthCriteria(limit)]),
            attention_mask=call.mask.repeat_interleave(beams, 0),
            pad_token_id=options["pad_token_id"],
            eos_token_id=ends,
            output_scores=True,
            return_dict_in_generate=True,
            **more,
        )


def close(result: Tensor, expected: Any) -> None:
    """Compares with a tolerance of 1e-4; a large sum of log-probabilities has a relative one."""
    torch.testing.assert_close(result, torch.as_tensor(expected), atol=1e-4, rtol=1e-6, check_dtype=False)


def check(call: Call, result: GenerateOutput, expected: Any) -> None:
    """Compares tokens, scores of the texts, and scores of all tokens in each step."""
    assert result.sequences.tolist() == torch.as_tensor(expected["sequences"]).tolist(), call.options
    if expected.get("sequences_scores") is not None:
        close(result.sequences_scores, expected["sequences_scores"])
    if expected.get("scores") is not None:
        assert result.scores is not None and len(result.scores) == len(expected["scores"])
        for scores, expected_scores in zip(result.scores, expected["scores"], strict=True):
            # The beams of a prompt that has ended are arbitrary; those of a single prompt never continue.
            if len(call.ids) == 1 or call.options.get("num_beams") is None:
                close(scores, expected_scores)
    if expected.get("beam_indices") is not None and "num_beam_groups" not in call.options:
        assert result.beam_indices.tolist() == torch.as_tensor(expected["beam_indices"]).tolist()


@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("family", INSTALLED)
def test_texts_equal_those_of_the_installed_transformers(family: str, number: int) -> None:
    call = random_call(family, number)
    check(call, call.run(), run_installed(call))


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("family", RECORDED)
def test_texts_equal_the_recorded_ones_of_transformers_4(family: str, index: int) -> None:
    record = RECORDS[family][index]
    call = golden_call(family, record["number"])
    check(call, call.run(), record)


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("name", ["beam_search", "beam_sample"])
def test_direct_methods_return_the_recorded_texts_of_transformers_4(name: str, index: int) -> None:
    record = RECORDS[f"direct_{name}"][index]
    call = golden_call(name, record["number"])
    check(call, direct_search(call), record)


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("family", ["diverse", "constrained", "contrastive"])
def test_embeddings_have_the_answers_and_scores_of_their_ids(family: str, number: int) -> None:
    call = random_call(family, number)
    options: dict[str, Any] = {**call.options, "return_dict_in_generate": True, "output_scores": True}
    for name in ("repetition_penalty", "no_repeat_ngram_size"):  # they depend on the ids of the prompt
        options.pop(name, None)
    if "constraints" in options:
        options["constraints"] = [constraint_of(fields) for fields in options["constraints"]]
    ids = torch.tensor([[1], [9]])  # transformers 4.34 counts embeddings as one token; no constraint has these
    embeddings = call.model.get_input_embeddings()(ids).detach()
    expected = call.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    result = call.model.generate(inputs_embeds=embeddings, **options)
    assert result.sequences.tolist() == expected.sequences[:, 1:].tolist()
    if family != "contrastive":
        close(result.sequences_scores, expected.sequences_scores)


def test_forced_words_with_sampling_are_a_beam_search_that_draws_nothing() -> None:
    call = random_call("constrained", 0)
    options: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 6, "force_words_ids": [[50, 51]], "eos_token_id": 2}
    expected = call.model.generate(call.ids, attention_mask=call.mask, pad_token_id=0, **options)
    options |= {"do_sample": True, "temperature": 0.5, "top_k": 3}
    with pytest.warns(UserWarning, match="force_words_ids selects a beam search that draws no tokens"):
        result = call.model.generate(call.ids, attention_mask=call.mask, pad_token_id=0, **options)
    assert result.tolist() == expected.tolist()
    options["constraints"] = [puna.PhrasalConstraint([50])]
    with pytest.raises(PunaError, match="constraints need do_sample=False"):
        call.model.generate(call.ids, attention_mask=call.mask, pad_token_id=0, **options)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.oracle
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_random_calls_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    if family in RECORDS and family not in RELEASES:
        pytest.skip("no environment of the tests has a release with this strategy")
    calls = [random_call(family, number) for number in range(100, 140)]
    if family in RELEASES:
        results = run_release(ROOT / ".oracles" / RELEASES[family] / "bin/python", calls, tmp_path)
    else:
        results = [run_installed(call) for call in calls]
    compared = 0
    for call, expected in zip(calls, results, strict=True):
        if "error" not in expected:  # record.py describes when 4.34.1 fails
            check(call, call.run(), expected)
            compared += 1
    assert compared >= 36


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.oracle
@pytest.mark.parametrize("family", RELEASES)
def test_texts_of_random_embeddings_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    calls = [embedded_call(family, number) for number in range(100, 140)]
    results = run_release(ROOT / ".oracles" / RELEASES[family] / "bin/python", calls, tmp_path)
    compared = 0
    for call, expected in zip(calls, results, strict=True):
        if "error" not in expected:
            result = call.run()
            assert result.sequences.tolist() == expected["sequences"][:, 1:].tolist()  # 4.34 begins with BOS
            if expected.get("sequences_scores") is not None:
                close(result.sequences_scores, expected["sequences_scores"])
            compared += 1
    assert compared >= 36
