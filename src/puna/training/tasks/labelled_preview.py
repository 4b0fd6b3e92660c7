"""What a classifier will see of its training data: texts with labels, lengths, and rows that cannot be used."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Label
from puna.training.data.label_columns import certain_label, columns_by_values
from puna.training.data.preview import Preview, Sample
from puna.training.data.read import DataOptions, Progress, Report
from puna.training.data.readers.open import open_rows
from puna.training.settings import TrainingSettings
from puna.training.tasks.labelled import read_labelled, sample_rows
from puna.training.tasks.labels import Labels

_SFT_COLUMNS = frozenset({"messages", "conversations", "prompt", "completion", "instruction"})
_LONGEST = 1 << 24
"""Tokens; the lengths of a preview are those before truncation."""


def detect_task(data: Any, options: DataOptions) -> tuple[str, str]:
    """Returns the task for which data seem to be, sft or classify, and the column that tells; "" for sft."""
    if options.format != "auto" or not (options.columns or {}).keys() <= {"text", "label"}:
        return "sft", ""
    rows = sample_rows(open_rows(data, options.split))
    if not rows:
        return "sft", ""
    names = list(rows[0].values)
    column = (options.columns or {}).get("label", certain_label(names))
    if any(name.strip().casefold() in _SFT_COLUMNS for name in names):
        return "sft", ""
    if not column and "text" not in names:  # which a format of sft has
        text, label = columns_by_values([row.values for row in rows], (options.columns or {}).get("text"))
        column = label if text is not None and label is not None else ""
    return ("classify", column) if column else ("sft", "")


def preview_labelled(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    count: int,
    progress: Progress | None = None,
    labelling: Mapping[str, Any] | None = None,
) -> tuple[Preview, dict[str, int]]:
    """Returns the first `count` texts, with their labels as the last piece, and the number of texts of each label.

    Args:
        labelling: the settings `labels` and `problem`.

    Raises:
        DataError: the columns cannot be told, or no row can be used.
    """
    settings = TrainingSettings.of(
        {"task": "classify", "columns": options.columns, "split": options.split, "bad_rows": "skip",
         "max_length": _LONGEST, **(labelling or {})}
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = read_labelled(data, settings, tokenizer, progress=progress)
    messages = [str(item.message) for item in caught]
    bad = [text.removeprefix("row skipped: ") for text in messages if text.startswith("row skipped: ")]
    lengths = np.array([len(examples[index].ids) for index in range(len(examples))], np.int32)
    kept = np.minimum(lengths, options.max_length)
    report = Report(
        "classification", (), len(examples) + len(bad), len(examples), int(kept.sum()), 0,
        int((lengths > kept).sum()), int((lengths - kept).sum()), bad_rows=bad,
    )  # fmt: skip
    counts: Counter[str] = Counter()
    samples: list[Sample] = []
    for index in range(len(examples)):
        example = examples[index]
        names = _names(example.label, examples.labels)
        counts.update(names)
        if len(samples) < count:
            ids = example.ids[-kept[index] :] if options.truncate == "start" else example.ids[: kept[index]]
            text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
            pieces = [(str(text), 0.0), (", ".join(names), 1.0)]
            removed = int(lengths[index] - kept[index])
            samples.append(Sample(example.source, ids, np.zeros(len(ids), np.float32), 0, pieces, removed))
    return Preview(report, lengths, samples), dict(counts)


def _names(label: Label, labels: Labels) -> list[str]:
    """Returns the names of the labels of a text; the number(s) of a regression as a text."""
    if labels.problem == "regression":
        return [str(label)]
    if isinstance(label, tuple):
        return [name for name, value in zip(labels.names, label, strict=True) if value]
    return [labels.names[int(label or 0)]]
