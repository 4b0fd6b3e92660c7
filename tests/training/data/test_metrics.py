"""Metrics, compared with values that scikit-learn 1.9 and scipy 1.17 computed, and with the libraries if installed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from puna.training.metrics import HIGHER_IS_BETTER, auc, evaluate_labels, is_better, pearson, roc_curve, spearman

RECORDED = json.loads((Path(__file__).parent / "recorded_metrics.json").read_text())
NAMES = ["a", "b", "c"]


def test_metrics_of_one_label_per_text():
    expected = RECORDED["single"]
    targets, logits = np.array(RECORDED["targets"]), np.array(RECORDED["logits"])
    result = evaluate_labels("single_label_classification", targets, logits, NAMES)
    for name in ("loss", "accuracy", "f1_macro", "f1_micro"):
        assert result[name] == pytest.approx(expected[name], abs=1e-12), name
    assert result["auc"] == pytest.approx(expected["auc_macro"], abs=1e-12)
    assert result["confusion_matrix"] == expected["confusion"]
    for name in ("precision", "recall", "f1", "auc"):
        assert [result["classes"][key][name] for key in NAMES] == pytest.approx(expected[name], abs=1e-12)
    assert sum(row["texts"] for row in result["classes"].values()) == len(targets)
    assert json.loads(json.dumps(result)) == result


def test_metrics_of_several_labels_per_text():
    expected = RECORDED["several"]
    targets, logits = np.array(RECORDED["indicator"]), np.array(RECORDED["several_logits"])
    result = evaluate_labels("multi_label_classification", targets, logits, NAMES)
    for name in ("loss", "accuracy", "f1_macro", "f1_micro"):
        assert result[name] == pytest.approx(expected[name], abs=1e-12), name
    assert [result["classes"][key]["auc"] for key in NAMES] == pytest.approx(expected["auc"], abs=1e-12)
    assert result["confusion_matrix"] == expected["confusion"]


def test_metrics_of_a_regression():
    targets, values = np.array(RECORDED["values"]), np.array(RECORDED["predictions"])
    result = evaluate_labels("regression", targets, values[:, None], ["x"])
    for name, expected in RECORDED["regression"].items():
        assert result[name] == pytest.approx(expected, abs=1e-12), name
    assert result["loss"] == result["mean_squared_error"]


def test_points_of_the_roc_curve():
    logits = np.array(RECORDED["logits"])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    curves = roc_curve(np.array(RECORDED["targets"]) == 1, probabilities[:, 1])
    for curve, expected in zip(curves, RECORDED["roc"], strict=True):
        np.testing.assert_allclose(curve, expected, atol=1e-12)


def test_metrics_that_the_data_do_not_determine_are_none():
    targets, logits = np.zeros(4, np.int64), np.eye(3)[[0, 0, 1, 0]]
    result = evaluate_labels("single_label_classification", targets, logits, NAMES)
    assert result["auc"] is None and result["classes"]["c"]["auc"] is None
    assert result["accuracy"] == 0.75 and result["classes"]["c"]["f1"] == 0.0
    assert math.isnan(auc(np.zeros(3, bool), np.arange(3.0))) and math.isnan(pearson(np.zeros(3), np.arange(3.0)))
    assert evaluate_labels("regression", np.ones(3), np.ones((3, 1)), ["x"])["pearson"] is None


def test_large_logits_do_not_overflow():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]])
    with np.errstate(all="raise", under="ignore"):
        one = evaluate_labels("single_label_classification", np.array([0, 0]), logits, NAMES[:2])
        several = evaluate_labels("multi_label_classification", np.array([[1, 0], [1, 0]]), logits, NAMES[:2])
    assert one["loss"] == 1e4 and several["loss"] == 5e3


def test_the_direction_of_a_metric():
    assert is_better("accuracy", 0.9, 0.8) and not is_better("accuracy", 0.8, 0.8) and is_better("loss", 0.8, 0.9)
    assert is_better("f1_macro", 0.0, None) and not is_better("auc", None, 0.5) and not is_better("auc", None, None)
    numbers = evaluate_labels("single_label_classification", np.array([0, 1]), np.eye(2), NAMES[:2])
    assert numbers.keys() - HIGHER_IS_BETTER == {"loss", "classes", "confusion_matrix", "labels"}
    regression = evaluate_labels("regression", np.arange(3), np.ones((3, 1)), ["x"])
    assert regression.keys() - HIGHER_IS_BETTER == {"loss", "mean_squared_error", "mean_absolute_error"}


@pytest.mark.parametrize("seed", range(5))
def test_random_data_have_the_values_of_the_libraries(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    classes, count = 2 + seed, 30
    targets = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)).round(seed % 3)  # with ties
    names = [str(index) for index in range(classes)]
    result = evaluate_labels("single_label_classification", targets, logits, names)
    choices = logits.argmax(axis=1)
    assert result["confusion_matrix"] == metrics.confusion_matrix(targets, choices, labels=range(classes)).tolist()
    f1 = metrics.f1_score(targets, choices, labels=range(classes), average="macro", zero_division=0)
    assert result["f1_macro"] == pytest.approx(f1, abs=1e-12)
    curves = roc_curve(targets == 1, logits[:, 1])
    for curve, expected in zip(curves, metrics.roc_curve(targets == 1, logits[:, 1])[:2], strict=True):
        np.testing.assert_allclose(curve, expected, atol=1e-12)
    values = rng.normal(size=count).round(1)
    assert spearman(values, logits[:, 0]) == pytest.approx(stats.spearmanr(values, logits[:, 0])[0], abs=1e-12)
