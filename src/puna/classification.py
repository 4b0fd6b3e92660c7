"""Labels of texts: `ClassificationHead` computes a `Classification` from the hidden state of a text's last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig


@dataclass(frozen=True)
class Classification:
    """The labels of a text.

    Attributes:
        label: the label with the highest score.
        labels: all labels, in the order of the model's ids.
        scores: for each label, its probability; for a regression, the predicted number.
        logits: for each label, the output of the head.
    """

    label: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    logits: tuple[float, ...]

    def __str__(self) -> str:
        return self.label


class ClassificationHead:
    """The last layer of a `LlamaForSequenceClassification`, in NumPy.

    Args:
        weight: `score.weight`, (number of labels, D).
        labels: names of the labels.
        problem_type: "single_label_classification" (softmax), "multi_label_classification" (sigmoid) or "regression".
            None, or one label: as in the pipelines of transformers, sigmoid for one label (except for a regression),
            and softmax for several.
    """

    def __init__(self, weight: NDArray[np.float32], labels: Sequence[str], problem_type: str | None = None) -> None:
        assert weight.ndim == 2 and len(weight) == len(labels)
        self._weight = weight.astype(np.float64)
        self.labels = tuple(labels)
        self._problem_type = problem_type

    @classmethod
    def of(cls, config: LlamaConfig, weight: NDArray[np.float32]) -> ClassificationHead:
        """Returns the head with the labels and the problem of a configuration."""
        return cls(weight, [config.id2label[index] for index in range(config.num_labels)], config.problem_type)

    @property
    def problem(self) -> Literal["single_label_classification", "multi_label_classification", "regression"]:
        """The problem that the head was trained for; without `problem_type`, as in `LlamaForSequenceClassification`."""
        if self._problem_type == "multi_label_classification":
            return "multi_label_classification"
        if self._problem_type == "regression" or (self._problem_type is None and len(self.labels) == 1):
            return "regression"
        return "single_label_classification"

    def classify(self, state: NDArray[np.float32]) -> Classification:
        """Returns the labels of a text from the hidden state of its last token, (D,).

        Each logit is summed in float64 in a fixed order, whatever other texts there are.
        """
        logits = (self._weight * state).sum(axis=1).astype(np.float32)
        scores = self._scores(logits.astype(np.float64))
        label = self.labels[int(logits.argmax())]
        return Classification(label, self.labels, tuple(scores.tolist()), tuple(logits.tolist()))

    def _scores(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._problem_type == "regression":
            return logits
        if self._problem_type == "multi_label_classification" or len(logits) == 1:
            exponentials = np.exp(-np.abs(logits))
            return np.where(logits >= 0, 1.0, exponentials) / (1.0 + exponentials)
        exponentials = np.exp(logits - logits.max())
        scores: NDArray[np.float64] = exponentials / exponentials.sum()
        return scores
