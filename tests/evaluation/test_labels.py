"""Metrics of a classifier on a labelled file: those of its predictions one by one."""

from __future__ import annotations

import numpy as np
import pytest

from puna import LLM
from puna.errors import DataError, RequestError
from puna.evaluation.labels import evaluate_classifier
from puna.training.metrics import evaluate_labels
from tests.cli.test_cli import as_json, run
from tests.golden.files import LAYOUTS
from tests.helpers.classifiers import write_classifier

TEXTS = ["the llama", "grass", "a herd of llamas", "the sea", "x"]


@pytest.mark.parametrize(
    ("problem", "values", "targets"),
    [
        (None, ["kind 0", "kind 2", "1", 0, "kind 1"], [0, 2, 1, 0, 1]),
        ("multi_label_classification", [["kind 1"], [], "kind 0|kind 2", [0], "kind 1"],
         [[0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0], [0, 1, 0]]),
        ("regression", [[1, 2, 3.5], [0, 0, 1], [1, 1, 1], [2, 1, 0], [3, 0, 1]],
         [[1, 2, 3.5], [0, 0, 1], [1, 1, 1], [2, 1, 0], [3, 0, 1]]),
    ],
)  # fmt: skip
def test_metrics_of_a_labelled_data_set(tmp_path, problem, values, targets):
    folder = write_classifier(LAYOUTS["hf"], tmp_path / "model", 3, problem_type=problem)
    rows = [{"text": text, "label": value} for text, value in zip(TEXTS, values, strict=True)]
    with LLM(folder, "native") as llm:
        result = evaluate_classifier(llm, rows)
        logits = np.array([llm.classify(text)[0].logits for text in TEXTS])
    expected = evaluate_labels(
        problem or "single_label_classification", np.array(targets), logits, [f"kind {index}" for index in range(3)]
    )
    assert result == {"texts": 5, **expected}


def test_the_command_and_its_errors(tmp_path):
    folder = write_classifier(LAYOUTS["hf"], tmp_path / "model", 3)
    file = tmp_path / "data.csv"
    file.write_text("review,kind\nthe llama,kind 0\ngrass,kind 1\nthe sea,kind 1\n")
    arguments = ["eval", "classify", str(file), "-m", str(folder), "--backend", "native", "--label-column", "kind"]
    with LLM(folder, "native") as llm:
        expected = evaluate_classifier(llm, str(file), columns={"label": "kind"})
        file.with_name("bad.csv").write_text("text,label\nthe llama,kind 7\n")
        with pytest.raises(DataError, match=r"bad\.csv, line 2: the label is 'kind 7'; the labels are 'kind 0'"):
            evaluate_classifier(llm, str(file.with_name("bad.csv")))
    assert as_json(*arguments) == expected
    lines = run(*arguments).stdout.splitlines()
    assert lines[0].split() == ["texts", "3"] and any(line.startswith("accuracy") for line in lines)
    with LLM(LAYOUTS["hf"], "native") as llm, pytest.raises(RequestError, match="no classification head"):
        evaluate_classifier(llm, str(file))
