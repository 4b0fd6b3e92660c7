"""Multiple choice by log-likelihood, compared with `LLM.score`, and with lm-eval on an offline task."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from puna import LLM
from puna.errors import DataError
from puna.evaluation.choice import Question, evaluate_choices, read_questions
from puna.evaluation.perplexity import evaluate_perplexity
from tests.cli.test_cli import as_json, run
from tests.golden.files import LAYOUTS

QUESTIONS = [
    Question("the llama lives in the", ("grass", "sea of ice and snow", "x"), 0),
    Question("a herd of", ("llamas", "grassland"), 1),
    Question("The llama eats", ("grass", "stones", "the sea"), 0),
    Question("the high", ("grassland", "llama", "é"), 2),
]


@pytest.fixture(scope="module")
def llm():
    with LLM(LAYOUTS["hf"], "native") as model:
        yield model


def test_accuracies_follow_from_the_likelihoods(llm):
    scores = [llm.score(item.context, [f" {choice}" for choice in item.choices]) for item in QUESTIONS]
    metrics = evaluate_choices(llm, QUESTIONS)
    for name, length in (("acc", lambda text: 1), ("acc_norm", len), ("acc_bytes", lambda text: len(text.encode()))):
        correct = [
            int(np.argmax(values / np.array([length(choice) for choice in item.choices]))) == item.answer
            for item, values in zip(QUESTIONS, scores, strict=True)
        ]
        assert metrics[name] == np.mean(correct)
        assert metrics[f"{name}_stderr"] == pytest.approx(np.std(correct, ddof=1) / 2)
    assert metrics["questions"] == 4
    assert evaluate_choices(llm, QUESTIONS[:1])["acc_stderr"] is None


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a b", "c"], "answer": 1},
        {"context": "q", "endings": ["a b", "c"], "label": "1"},
        {"prompt": "q", "options": ["a b", "c"], "gold": "c"},
        {"query": "q", "choices": ["a b", "c"], "answer": "B"},
        {"question": "q", "choices": {"text": ["a b", "c"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "q", "choices": '["a b", "c"]', "answer": "b"},
    ],
)
def test_forms_of_questions(row):
    assert list(read_questions([row])) == [Question("q", ("a b", "c"), 1)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": ["a", "b"]}, "row 1: .* the column with the answer is missing"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "row 1: the choices are .* at least two texts"),
        ({"question": "q", "choices": "a,b", "answer": 0}, "at least two texts"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "the answer is 2; .* its index from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": "z"}, "the answer is "),
        ({"question": 5, "choices": ["a", "b"], "answer": 0}, "the question is 5; it must be a text"),
    ],
)
def test_malformed_questions_are_errors(row, message):
    with pytest.raises(DataError, match=message):
        list(read_questions([row]))


def write_task(folder):
    """Writes an offline multiple-choice task, an offline perplexity task, and their data."""
    rows = [{"question": item.context, "choices": list(item.choices), "answer": item.answer} for item in QUESTIONS]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = ["the llama lives in the grass", "the high grassland " * 60]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    choice = {
        "task": "llamas", "dataset_path": "json", "dataset_kwargs": {"data_files": str(folder / "data.jsonl")},
        "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
    }  # fmt: skip
    rolling = {
        "task": "grass", "dataset_path": "json", "dataset_kwargs": {"data_files": str(folder / "texts.jsonl")},
        "test_split": "train", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    }  # fmt: skip
    generation = {
        "task": "writing", "dataset_path": "json", "dataset_kwargs": {"data_files": str(folder / "data.jsonl")},
        "test_split": "train", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "x",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 5}, "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    for task in (choice, rolling, generation):  # JSON is YAML
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))
    return texts


@pytest.mark.slow
def test_lm_eval_computes_the_same_numbers(llm, tmp_path):
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.tasks import TaskManager

    import puna.evaluation.harness as harness

    texts = write_task(tmp_path)
    model = harness.PunaLM(llm)
    report = lm_eval.simple_evaluate(
        model=model, tasks=["llamas", "grass", "writing"], bootstrap_iters=0, log_samples=True,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )  # fmt: skip
    results = report["results"]
    metrics = evaluate_choices(llm, QUESTIONS)
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert results["llamas"][f"{name},none"] == metrics[name], name
    perplexity = evaluate_perplexity(llm, texts)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert results["grass"][f"{name},none"] == pytest.approx(perplexity[name], rel=1e-12), name
    for sample, item in zip(report["samples"]["writing"], QUESTIONS, strict=True):
        expected = llm.generate(item.context, max_tokens=5, stop=["."], temperature=0).text
        assert sample["resps"][0][0] == expected
    assert lm_eval.api.registry.get_model("puna") is harness.PunaLM


@pytest.mark.slow
def test_lm_eval_keeps_its_own_models():
    """In a new process: lm-eval registers its models only if none is registered."""
    pytest.importorskip("lm_eval")
    program = "import puna.evaluation.harness, lm_eval.api.registry as registry; registry.get_model('dummy')"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_command_prints_the_same_numbers(llm, tmp_path):
    write_task(tmp_path)
    arguments = ["eval", "choice", str(tmp_path / "data.jsonl"), "-m", str(LAYOUTS["hf"]), "--backend", "native"]
    assert as_json(*arguments) == evaluate_choices(llm, QUESTIONS)
    lines = run(*arguments, "--limit", "2").stdout.splitlines()
    assert lines[0].split() == ["questions", "2"] and lines[1].startswith("acc ") and "±" in lines[1]
