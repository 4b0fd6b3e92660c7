"""Metrics of classifications and regressions, in NumPy, with the definitions of scikit-learn.

Legend: N texts, C classes. A metric that the data do not determine (such as the AUC with one class only) is NaN in the
functions and None in the tables, which are written as JSON. F1, precision and recall without a single case are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
"""The names that transformers uses in `problem_type`."""

HIGHER_IS_BETTER = {"accuracy", "f1_macro", "f1_micro", "auc", "pearson", "spearman"}
"""Metrics whose highest value is the best; of all others, such as losses, it is the lowest."""


def accuracy(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Returns the share of equal items; of two matrices (N, C), the share of equal rows."""
    equal = targets == predictions
    return float((equal.all(axis=1) if equal.ndim == 2 else equal).mean())


def confusion_matrix(targets: Ints, predictions: Ints, classes: int) -> Ints:
    """Returns the number of texts of each class (rows) with each prediction (columns), (C, C)."""
    counts = np.bincount(targets * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def class_counts(targets: Ints, predictions: Ints, classes: int) -> tuple[Ints, Ints, Ints]:
    """Returns the numbers of correct texts, of predictions and of targets of each class, each (C,)."""
    matrix = confusion_matrix(targets, predictions, classes)
    return matrix.diagonal().copy(), matrix.sum(axis=0), matrix.sum(axis=1)


def ratio(counts: Ints, totals: Ints) -> Floats:
    """Returns counts / totals; 0 where the total is 0."""
    return np.divide(counts, totals, out=np.zeros(np.shape(counts)), where=np.asarray(totals) > 0)


def f1_scores(correct: Ints, predicted: Ints, actual: Ints) -> Floats:
    """Returns the F1 of each class, the harmonic mean of precision and recall, (C,)."""
    return ratio(2 * correct, predicted + actual)


def roc_curve(targets: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Returns (false positive rates, true positive rates) at all thresholds, from (0, 0) to (1, 1).

    Points after the first that are on a straight line between their neighbours are left out. Without a positive or a
    negative text, the rates of that kind are NaN.
    """
    ranking = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[ranking], append=np.nan) != 0)  # ties share a threshold
    positives = np.cumsum(targets[ranking])[ends]
    negatives = ends + 1 - positives
    bends = (np.diff(positives, 2) != 0) | (np.diff(negatives, 2) != 0)
    kept = np.ones(len(ends), bool)
    kept[1:-1] = bends
    with np.errstate(invalid="ignore"):
        false, true = (np.append(0, counts[kept]) / counts[-1] for counts in (negatives, positives))
    return false, true


def auc(targets: NDArray[np.bool_], scores: Floats) -> float:
    """Returns the area under the ROC curve; NaN without a positive or without a negative text."""
    false, true = roc_curve(targets, scores)
    return float(((true[1:] + true[:-1]) * np.diff(false)).sum() / 2)


def pearson(targets: Floats, predictions: Floats) -> float:
    """Returns Pearson's correlation; NaN if one side is constant."""
    left, right = targets - targets.mean(), predictions - predictions.mean()
    scale = math.sqrt((left * left).sum()) * math.sqrt((right * right).sum())
    return float((left * right).sum() / scale) if scale else math.nan


def spearman(targets: Floats, predictions: Floats) -> float:
    """Returns Spearman's correlation: Pearson's of the ranks, where ties have their mean rank."""
    return pearson(_ranks(targets), _ranks(predictions))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def evaluate_labels(problem: Problem, targets: NDArray[Any], logits: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Returns the metrics of a labelled data set by name, as plain numbers, lists and dictionaries.

    Args:
        targets: (N,) class indices, (N, C) numbers 0 and 1 for several labels per text, or (N,) or (N, C) numbers for a
            regression.
        logits: (N, C) outputs of the classification head.
        names: the names of the classes.
    """
    assert len(targets) == len(logits) > 0
    if problem == "regression":
        return _regression(targets.reshape(len(targets), -1).astype(np.float64), logits)
    if problem == "multi_label_classification":
        return _several_labels(targets > 0.5, logits, names)
    return _single_label(targets.astype(np.int64), logits, names)


def _single_label(targets: Ints, logits: Floats, names: Sequence[str]) -> dict[str, Any]:
    predictions = logits.argmax(axis=1)
    counts = class_counts(targets, predictions, len(names))
    scores = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    areas = [auc(targets == index, probabilities[:, index]) for index in range(len(names))]
    losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), targets]
    return {
        "loss": float(losses.mean()),
        "accuracy": accuracy(targets, predictions),
        **_class_metrics(counts, areas, names),
        "confusion_matrix": confusion_matrix(targets, predictions, len(names)).tolist(),
        "labels": list(names),
    }


def _several_labels(targets: NDArray[np.bool_], logits: Floats, names: Sequence[str]) -> dict[str, Any]:
    predictions = logits > 0
    counts = ((targets & predictions).sum(axis=0), predictions.sum(axis=0), targets.sum(axis=0))
    losses = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return {
        "loss": float(losses.mean()),
        "accuracy": accuracy(targets, predictions),
        **_class_metrics(counts, [auc(targets[:, index], logits[:, index]) for index in range(len(names))], names),
        "confusion_matrix": [
            confusion_matrix(targets[:, index].astype(np.int64), predictions[:, index].astype(np.int64), 2).tolist()
            for index in range(len(names))
        ],
        "labels": list(names),
    }


def _class_metrics(counts: tuple[Ints, Ints, Ints], areas: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    """Returns the metrics of each class, and their means."""
    correct, predicted, actual = counts
    f1 = f1_scores(correct, predicted, actual)
    return {
        "f1_macro": float(f1.mean()),
        "f1_micro": float(f1_scores(correct.sum(), predicted.sum(), actual.sum())),
        "auc": plain(float(np.mean(areas))),
        "classes": {
            name: {
                "precision": float(precision), "recall": float(recall), "f1": float(score), "auc": plain(area),
                "texts": int(texts),
            }
            for name, precision, recall, score, area, texts in zip(
                names, ratio(correct, predicted), ratio(correct, actual), f1, areas, actual, strict=True
            )
        },
    }  # fmt: skip


def _regression(targets: Floats, values: Floats) -> dict[str, Any]:
    errors = values - targets
    square = float((errors * errors).mean())
    correlations = [
        [function(targets[:, index], values[:, index]) for index in range(targets.shape[1])]
        for function in (pearson, spearman)
    ]
    return {
        "loss": square,
        "mean_squared_error": square,
        "mean_absolute_error": float(np.abs(errors).mean()),
        "pearson": plain(float(np.mean(correlations[0]))),
        "spearman": plain(float(np.mean(correlations[1]))),
    }


def roc_points(
    problem: Problem, targets: NDArray[Any], logits: Floats, names: Sequence[str], most: int = 200
) -> dict[str, tuple[list[float], list[float]]]:
    """Returns (false positive rates, true positive rates) by class, for charts; of two classes only the second.

    The arguments are those of `evaluate_labels`. A curve has at most `most` points; a class without positive or
    negative texts, and a regression, have none.
    """
    if problem == "regression":
        return {}
    curves = {}
    for index, name in list(enumerate(names))[
        1 if problem != "multi_label_classification" and len(names) == 2 else 0 :
    ]:
        positive = targets == index if targets.ndim == 1 else targets[:, index] > 0.5
        scores = logits[:, index]
        if targets.ndim == 1:  # the logarithm of the odds: the logit minus that of all other classes together
            others = np.delete(logits, index, axis=1)
            scores = scores - np.logaddexp.reduce(others, axis=1)
        if 0 < positive.sum() < len(positive):
            curve = roc_curve(positive, scores)
            chosen = np.unique(np.linspace(0, len(curve[0]) - 1, min(most, len(curve[0]))).round().astype(np.int64))
            curves[name] = (curve[0][chosen].tolist(), curve[1][chosen].tolist())
    return curves


def plain(value: float) -> float | None:
    """Returns a number for JSON: None for NaN."""
    return None if math.isnan(value) else value


def is_better(name: str, value: float | None, best: float | None) -> bool:
    """Whether a value of a metric is better than the best one so far. None is worse than every number."""
    if value is None or best is None:
        return value is not None
    return value > best if name in HIGHER_IS_BETTER else value < best
