"""Metrics of a classifier on a labelled data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from puna.evaluation.likelihood import Progress
from puna.llm import LLM
from puna.training.metrics import evaluate_labels
from puna.training.settings import TrainingSettings
from puna.training.tasks.labelled import read_entries
from puna.training.tasks.labels import Labels

_GROUP = 64
"""Number of texts that are submitted together."""


def evaluate_classifier(
    llm: LLM, data: Any, *, adapter: str | None = None, progress: Progress | None = None, **settings: Any
) -> dict[str, Any]:
    """Returns "texts", the number of texts, and the metrics of `evaluate_labels` for a labelled data set.

    Args:
        llm: a classifier, or a model with an adapter that classifies.
        data: as in `puna train classify`: JSONL, CSV and so on, with the columns text and label.
        adapter: name of an adapter of `LLM(adapters=...)`.
        settings: options of training that tell how the data is read: columns, split, bad_rows.

    Raises:
        RequestError: the model has no classification head, or a text exceeds its context.
        DataError: a row cannot be used, or its label is not one of the model's.
    """
    head, _ = llm._classified([(0,)], adapter)
    labels = Labels(head.problem, head.labels)
    _, entries = read_entries(data, TrainingSettings.of(settings), head.labels)
    targets = [labels.target(value, source) for _, value, source in entries]
    logits = []
    for start in range(0, len(entries), _GROUP):
        group = [text for text, _, _ in entries[start : start + _GROUP]]
        logits += [result.logits for result in llm.classify(group, adapter=adapter)]
        if progress is not None:
            progress(len(group))
    return {"texts": len(entries), **evaluate_labels(labels.problem, np.array(targets), np.array(logits), head.labels)}
