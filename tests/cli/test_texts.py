"""`puna embed` and `puna classify`: texts as arguments and as lines of standard input."""

from __future__ import annotations

import numpy as np
import pytest

from puna import LLM
from tests.cli.test_cli import as_json, run
from tests.helpers.classifiers import write_classifier

TEXTS = ["the llama", "grassland", "x"]


@pytest.fixture(scope="module")
def classifier(tiny_model, tmp_path_factory):
    return write_classifier(tiny_model, tmp_path_factory.mktemp("classifiers") / "three", 3)


def test_embed_prints_the_numbers_of_each_text(tiny_model):
    model, llm = ["-m", str(tiny_model)], LLM(tiny_model)
    expected = llm.embed(TEXTS)
    out = as_json("embed", *TEXTS, *model)
    assert (np.array(out["embeddings"], np.float32) == expected).all()
    lines = run("embed", *TEXTS, *model).stdout.splitlines()
    assert (np.array([line.split() for line in lines], np.float32) == expected).all()
    out = as_json("embed", "the llama", "--pooling", "mean", "--normalize", *model)
    assert (np.array(out["embeddings"], np.float32) == llm.embed("the llama", pooling="mean", normalize=True)).all()


def test_classify_prints_the_label_of_each_text(classifier):
    results = LLM(classifier).classify(TEXTS)
    out = as_json("classify", *TEXTS, "-m", str(classifier))
    assert [item["label"] for item in out["results"]] == [result.label for result in results]
    assert [dict(item["scores"]) for item in out["results"]] == [
        dict(zip(result.labels, result.scores, strict=True)) for result in results
    ]
    lines = run("classify", *TEXTS, "-m", str(classifier)).stdout.splitlines()
    assert lines == [f"{r.label}\t{max(r.scores):.4f}\t{text}" for text, r in zip(TEXTS, results, strict=True)]


@pytest.mark.parametrize("command", ["embed", "classify"])
def test_each_line_of_standard_input_is_a_text(classifier, command):
    model = ["-m", str(classifier)]
    assert as_json(command, *model, input="\n".join(TEXTS) + "\n") == as_json(command, *TEXTS, *model)
    result = run(command, *model, input="")
    assert result.exit_code == 2
    assert "there is no text" in result.stderr


def test_commands_refuse_models_without_the_head_that_they_need(classifier, tiny_model):
    for arguments in (["generate", "hi"], ["run", str(classifier), "hi"], ["chat"], ["bench"], ["profile"]):
        model = [] if arguments[0] == "run" else ["-m", str(classifier)]
        result = run(*arguments, *model, input="hi\n")
        assert result.exit_code == 1
        assert "has no language-model head (its head: classification)" in result.stderr
    result = run("classify", "hi", "-m", str(tiny_model))
    assert result.exit_code == 1
    assert "has no classification head (its head: lm)" in result.stderr
