"""lm-eval's `HFLM` with puna's objects: the numbers and texts that it computes with those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

import puna

huggingface = pytest.importorskip("lm_eval.models.huggingface")
instances = pytest.importorskip("lm_eval.api.instance")

pytestmark = pytest.mark.filterwarnings("ignore")


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    """Returns requests of one kind."""
    return [instances.Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


@pytest.fixture(scope="module")
def evaluators(folder: Path) -> tuple[Any, Any]:
    """Evaluators of the same weights as objects of puna and of transformers."""
    pairs = (
        (puna.LlamaForCausalLM.from_pretrained(folder), puna.AutoTokenizer.from_pretrained(folder)),
        (
            transformers.LlamaForCausalLM.from_pretrained(folder),
            transformers.AutoTokenizer.from_pretrained(str(folder)),
        ),
    )
    first, second = (
        huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
        for model, tokenizer in pairs
    )
    return first, second


def test_likelihoods_equal_those_of_transformers(evaluators: tuple[Any, Any]) -> None:
    asked = [
        ("The cat", " sat"),
        ("A", " bigger dog is here"),
        ("", " x"),
        ("The cat " * 40, " is"),
        ("The", " cat sat on the mat." * 9),
    ]
    ours, theirs = (each.loglikelihood(requests("loglikelihood", *asked)) for each in evaluators)
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-5)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    text = ("The cat sat on the mat. " * 30,)  # longer than the context of the model
    ours, theirs = (each.loglikelihood_rolling(requests("loglikelihood_rolling", text)) for each in evaluators)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_generated_texts_equal_those_of_transformers(evaluators: tuple[Any, Any]) -> None:
    greedy = {"until": ["\n"], "max_gen_toks": 8}
    asked = [("The cat", greedy), ("A much longer text", {"until": ["zz"], "max_gen_toks": 12, "do_sample": False})]
    ours, theirs = (each.generate_until(requests("generate_until", *asked)) for each in evaluators)
    assert ours == theirs
    assert all(ours)
