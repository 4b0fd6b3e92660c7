"""Multiple choice by log-likelihood, with the accuracies that lm-eval defines for its `multiple_choice` tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.errors import DataError, show
from puna.evaluation.likelihood import Likelihood, Progress, encode_pair, score_pairs
from puna.llm import LLM
from puna.training.batch import Source
from puna.training.data.readers.open import open_rows
from puna.training.data.readers.rows import Row

_CONTEXT = ("question", "context", "prompt", "query", "text", "ctx", "input")
_CHOICES = ("choices", "options", "endings", "answers")
_ANSWER = ("answer", "label", "gold", "target", "answerKey", "correct")
"""Names of the columns, the most usual first."""


@dataclass(frozen=True)
class Question:
    """A text, its possible continuations, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


def read_questions(data: Any, columns: Mapping[str, str] | None = None, split: str = "train") -> Iterator[Question]:
    """Yields the questions of a data set with the columns question, choices and answer, or usual names of these.

    Choices are a list of texts (in CSV as JSON), or {"text": [...], "label": [...]} as in ARC. The answer is the index
    of a choice, its text, its label, or a letter: "B" is the second.

    Args:
        data, split: as in `open_rows`.
        columns: the names of the columns by "question", "choices" and "answer".

    Raises:
        DataError: a row has another form.
    """
    rows = open_rows(data, split)
    for index in range(len(rows)):
        row = rows.read(index)
        context = _column(row, "question", _CONTEXT, columns)
        if not isinstance(context, str):
            raise DataError(f"{row.source}: the question is {show(context)}; it must be a text")
        choices, labels = _read_choices(_column(row, "choices", _CHOICES, columns), row.source)
        yield Question(context, choices, _read_answer(_column(row, "answer", _ANSWER, columns), choices, labels, row))


def _column(row: Row, kind: str, names: Sequence[str], columns: Mapping[str, str] | None) -> Any:
    name = (columns or {}).get(kind) or next((name for name in names if name in row.values), None)
    if name is None or name not in row.values:
        raise DataError(
            f"{row.source}: the columns are {', '.join(map(show, row.values))}; the column with the {kind} is "
            f"{'missing' if name is None else f'not {show(name)}'}. Call it {', '.join(names)}, or name it in columns"
        )
    return row.values[name]


def _read_choices(value: Any, source: Source) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Returns the choices, and their labels if they have any."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    labels: Any = ()
    if isinstance(value, Mapping):
        value, labels = value.get("text"), value.get("label", ())
    value = value.tolist() if hasattr(value, "tolist") else value
    if (
        not isinstance(value, list | tuple)
        or len(value) < 2
        or not all(isinstance(item, str) and item for item in value)
    ):
        raise DataError(f"{source}: the choices are {show(value)}; they must be a list of at least two texts")
    return tuple(value), labels


def _read_answer(value: Any, choices: Sequence[str], labels: Sequence[Any], row: Row) -> int:
    value = value.item() if hasattr(value, "item") else value
    for names in (labels, choices):
        if isinstance(value, str) and value in list(names):
            return list(names).index(value)
    if isinstance(value, str) and len(value) == 1 and value.isalpha():
        value = ord(value.upper()) - ord("A")
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    raise DataError(
        f"{row.source}: the answer is {show(value)}; it must be one of the choices, its index from 0 to "
        f"{len(choices) - 1}, or its letter"
    )


def evaluate_choices(
    llm: LLM,
    questions: Sequence[Question],
    *,
    delimiter: str = " ",
    adapter: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns the accuracies of the most likely choices.

    Returns "questions", and for each of these metrics also its standard error, "..._stderr":
        "acc": the choice with the highest log-likelihood is the right one;
        "acc_norm": after division by the choice's length in characters;
        "acc_bytes": after division by its length in bytes.

    Args:
        delimiter: precedes each choice, and is not part of its length.
    """
    if not questions:
        raise DataError("there are no questions; add at least one")
    pairs = [encode_pair(llm, item.context, delimiter + choice) for item in questions for choice in item.choices]
    likelihoods = iter(score_pairs(llm, pairs, adapter, progress))
    correct = [_is_correct(item, [next(likelihoods) for _ in item.choices]) for item in questions]
    metrics: dict[str, Any] = {"questions": len(questions)}
    for name, values in zip(("acc", "acc_norm", "acc_bytes"), zip(*correct, strict=True), strict=True):
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        metrics[name] = float(np.mean(values))
        metrics[f"{name}_stderr"] = None if math.isnan(deviation) else deviation / math.sqrt(len(values))
    return metrics


def _is_correct(question: Question, likelihoods: Sequence[Likelihood]) -> tuple[bool, bool, bool]:
    values = np.array([likelihood.value for likelihood in likelihoods])
    lengths = [[1] * len(values), [len(item) for item in question.choices]]
    lengths.append([len(item.encode()) for item in question.choices])
    one, characters, size = (int(np.argmax(values / length)) == question.answer for length in lengths)
    return one, characters, size
