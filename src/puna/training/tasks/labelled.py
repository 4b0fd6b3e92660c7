"""`read_labelled`: the rows of a labelled data set as examples of a classification."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from puna.errors import DataError
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Example, Source
from puna.training.data.label_columns import SAMPLE
from puna.training.data.read import Progress
from puna.training.data.readers.open import open_rows
from puna.training.data.readers.rows import Row, Rows
from puna.training.settings import TrainingSettings
from puna.training.tasks.labels import LabelColumns, Labels

_PROGRESS = 128
"""Rows between two calls of `progress`."""


class LabelledExamples:
    """Tokenised texts with labels, in memory: 4 bytes per token."""

    def __init__(self, examples: list[Example], labels: Labels) -> None:
        self._examples, self.labels = examples, labels

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def longest(self) -> Example:
        """Returns the example with the most tokens."""
        return max(self._examples, key=lambda example: len(example.ids))

    def digest(self) -> str:
        """Returns a hash of the tokens and the labels."""
        value = hashlib.sha256(repr((self.labels.problem, self.labels.names)).encode())
        for example in self._examples:
            value.update(repr((example.label, len(example.ids))).encode() + example.ids.tobytes())
        return value.hexdigest()


def read_labelled(
    data: Any,
    settings: TrainingSettings,
    tokenizer: PreTrainedTokenizerBase,
    labels: Labels | None = None,
    progress: Progress | None = None,
) -> LabelledExamples:
    """Returns the examples of a labelled data set.

    Args:
        data: argument of `open_rows`.
        labels: those of the training data, if these are held-out data.
        progress: called with the number of rows that are tokenised, and of all rows.

    Raises:
        DataError: a row cannot be used, and `bad_rows` is "error"; or no row can be used.
        ConfigError: a setting contradicts the data.
    """
    columns, entries = read_entries(data, settings, settings.labels if labels is None else labels.names)
    labels = labels or Labels.infer([(value, source) for _, value, source in entries], settings, columns.name)
    examples: list[Example] = []
    truncated = 0
    for done, (text, value, source) in enumerate(entries, 1):
        with skipped_errors(settings):
            ids = encode_text(text, tokenizer, source)
            kept = np.array(_truncate(ids, settings, source), np.int32)
            examples.append(Example(kept, np.zeros(len(kept), np.float32), labels.target(value, source), source))
            truncated += len(ids) > len(kept)
        if progress is not None and (done % _PROGRESS == 0 or done == len(entries)):
            progress(done, len(entries))
    if not examples:
        raise DataError('no row can be used; correct the rows (with bad_rows = "error", the first error is shown)')
    if truncated:
        warnings.warn(
            f"{truncated} of {len(examples)} texts are longer than max_length = {settings.max_length} tokens; their "
            f"{settings.truncate} is left out",
            stacklevel=2,
        )
    return LabelledExamples(examples, labels)


def read_entries(
    data: Any, settings: TrainingSettings, names: Sequence[str] | None
) -> tuple[LabelColumns, list[tuple[str, Any, Source]]]:
    """Returns the columns of a labelled data set, and (text, label in the form of the data, source) of each row.

    Args:
        data: argument of `open_rows`.
        settings: `columns`, `split` and `bad_rows` are used.
        names: the labels, if they are known.

    Raises:
        DataError: the columns with the text and the label cannot be told; or a row cannot be used, and `bad_rows` is
            "error".
    """
    rows = open_rows(data, settings.split)
    columns = LabelColumns.of(rows.read(0), lambda: sample_rows(rows, 1), settings.columns, names)
    entries = []
    for index in range(len(rows)):
        with skipped_errors(settings):
            row = rows.read(index)
            entries.append((columns.text_of(row), columns.value(row), row.source))
    return columns, entries


def sample_rows(rows: Rows, start: int = 0) -> list[Row]:
    """Returns at most SAMPLE rows, from `start`, without those that cannot be read.

    Half are the first rows, among which sorted labels repeat; the others are spread over all rows, where they change.
    """
    sample, half = [], SAMPLE // 2
    for index in (*range(start, min(len(rows), half)), *range(half, len(rows), max(1, -(-(len(rows) - half) // half)))):
        with suppress(DataError):
            sample.append(rows.read(index))
    return sample


@contextmanager
def skipped_errors(settings: TrainingSettings) -> Iterator[None]:
    """Context manager: with `bad_rows` "skip", a DataError becomes a warning."""
    try:
        yield
    except DataError as exc:
        if settings.bad_rows == "error":
            raise
        warnings.warn(f"row skipped: {exc}", stacklevel=3)


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase, source: Source) -> list[int]:
    """Returns the ids of a text as `LLM.classify` reads them: an empty text is the BOS token.

    Raises:
        DataError: the text is empty, and the tokenizer has no BOS token.
    """
    ids = list(tokenizer.encode(text))
    if not ids and tokenizer.bos_token_id is not None:
        return [int(tokenizer.bos_token_id)]
    if not ids:
        raise DataError(f"{source}: the text is empty, and the tokenizer has no BOS token; delete the row")
    return ids


def _truncate(ids: list[int], settings: TrainingSettings, source: Source) -> list[int]:
    if len(ids) <= settings.max_length:
        return ids
    if settings.truncate == "error":
        raise DataError(
            f"{source}: the text has {len(ids)} tokens; max_length is {settings.max_length}. Raise max_length, shorten "
            "the text, or set truncate to end or start"
        )
    return ids[: settings.max_length] if settings.truncate == "end" else ids[-settings.max_length :]
