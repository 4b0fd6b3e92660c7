"""`read_examples`: data for fine-tuning as tokenised examples, with a report of what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from puna.errors import DataError, show, show_count
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Example
from puna.training.data.dataset import Dataset, DatasetWriter
from puna.training.data.label_columns import certain_label
from puna.training.data.layouts.conversation import Conversation
from puna.training.data.layouts.document import Document
from puna.training.data.layouts.render import render
from puna.training.data.layouts.table import LAYOUTS, find_layout, read_row
from puna.training.data.readers.open import open_rows
from puna.training.data.readers.rows import Rows
from puna.training.data.tokenization import Tokens, Truncation, fit, tokenize

_BATCH = 128
"""Documents that are tokenised at a time."""

_MAX_ERRORS = 10
"""Bad rows that an error shows."""

Progress = Callable[[int, int], None]
"""Called with the number of rows that were read, and of all rows."""


@dataclass(frozen=True)
class DataOptions:
    """How rows become examples; the attributes are the options of training of the same names.

    Attributes:
        format: a layout of `layouts/table.py`, or "auto".
        columns: names of columns in the data by the names that layouts have.
        split: the split of a folder, mapping or hub data set.
        max_length: tokens of an example at most.
        truncate: the part of a longer document that is removed.
        bad_rows: whether a bad row is an error.
        prompt_loss_weight: weight of the loss of tokens that are not answers.
    """

    format: str = "auto"
    columns: Mapping[str, str] | None = None
    split: str = "train"
    max_length: int = 1024
    truncate: Truncation = "end"
    bad_rows: Literal["error", "skip"] = "error"
    prompt_loss_weight: float = 0.0


@dataclass
class Report:
    """What was read.

    Attributes:
        format: the layout of the rows.
        unused: columns of the first row that are not read.
        rows: number of rows.
        examples: number of examples.
        tokens: number of tokens of all examples.
        learned: number of tokens that are learned.
        truncated: number of rows of which tokens were removed.
        removed: number of tokens that were removed.
        split: number of rows that became several examples.
        unaligned: number of rows in which a token contains the end of a prompt and the beginning of the answer.
        first_unaligned: the first of these rows.
        bad_rows: the messages of the rows that cannot be used.
        is_chat: whether rows are conversations, which the chat template renders.
    """

    format: str = ""
    unused: tuple[str, ...] = ()
    rows: int = 0
    examples: int = 0
    tokens: int = 0
    learned: int = 0
    truncated: int = 0
    removed: int = 0
    split: int = 0
    unaligned: int = 0
    first_unaligned: str = ""
    bad_rows: list[str] = field(default_factory=list)
    is_chat: bool = False

    def notes(self) -> list[str]:
        """Returns a sentence about each thing that the user should know."""
        notes = []
        if self.unused:
            hint = "; `puna train classify` (task classify) learns labels" if certain_label(list(self.unused)) else ""
            notes.append(f"columns that are not used: {', '.join(map(show, self.unused[:20]))}{hint}")
        if self.truncated:
            rows = show_count(self.truncated, "row")
            notes.append(f"{rows} truncated: {self.removed} tokens are not used; raise max_length")
        if self.unaligned:
            rows = show_count(self.unaligned, "row")
            notes.append(
                f"{rows} (first: {self.first_unaligned}) with a token that contains the end of the "
                "prompt and the beginning of the answer; begin answers with a space or a line end"
            )
        if self.bad_rows:
            notes.append(f"{show_count(len(self.bad_rows), 'row')} left out; the first: {self.bad_rows[0]}")
        return notes


def read_examples(
    data: Any, tokenizer: PreTrainedTokenizerBase, options: DataOptions, progress: Progress | None = None
) -> tuple[Dataset, Report]:
    """Reads, renders and tokenises all rows, so that every bad row is reported before the training starts.

    Args:
        data: the argument of `open_rows`.

    Raises:
        DataError: rows cannot be used; the message names the file, the line and the remedy of the first ten.
    """
    report, writer = Report(), DatasetWriter()
    for document, _, parts in iter_parts(data, report, tokenizer, options, progress):
        for part in parts:
            weights = part.loss_weights(options.prompt_loss_weight)
            writer.add(Example(part.ids, weights, None, document.source))
    if report.bad_rows and (options.bad_rows == "error" or not report.examples):
        raise bad_rows_error(report.bad_rows)
    return writer.finish(), report


def iter_parts(
    data: Any, report: Report, tokenizer: PreTrainedTokenizerBase, options: DataOptions, progress: Progress | None
) -> Iterator[tuple[Document, Tokens, list[Tokens]]]:
    """Yields the document, all tokens and the examples of each row; completes the report.

    Raises:
        DataError: the data cannot be opened, or have no format; bad rows are in the report.
    """
    rows = open_rows(data, options.split)
    report.rows = len(rows)
    report.format, report.unused = _first_layout(rows, options)
    for document, tokens in _tokenized(rows, report, tokenizer, options, progress):
        try:
            parts = fit(tokens, document, options.max_length, options.truncate)
        except DataError as exc:
            report.bad_rows.append(str(exc))
            continue
        _count(report, document, tokens, parts)
        yield document, tokens, parts


def bad_rows_error(messages: list[str]) -> DataError:
    """Returns the error for rows that cannot be used; `messages` has one message for each."""
    if len(messages) == 1:
        return DataError(messages[0])
    shown = "\n".join(f"  {message}" for message in messages[:_MAX_ERRORS])
    more = f"\n  and {len(messages) - _MAX_ERRORS} more" * (len(messages) > _MAX_ERRORS)
    return DataError(f'{len(messages)} rows cannot be used; correct them, or set bad_rows to "skip":\n{shown}{more}')


def _first_layout(rows: Rows, options: DataOptions) -> tuple[str, tuple[str, ...]]:
    """Returns the layout of the first row that can be read, and the columns that are not used; raises DataError."""
    failure: DataError | None = None
    for index in range(len(rows)):
        try:
            row = rows.read(index)
        except DataError as exc:
            failure = failure or exc
            continue
        name = find_layout(row, options.format, options.columns)
        used = {*LAYOUTS[name].required, *LAYOUTS[name].optional, *(options.columns or {}).values()}
        return name, tuple(column for column in row.values if column not in used)
    assert failure is not None, "open_rows returns at least one row"
    raise failure


def _tokenized(
    rows: Rows, report: Report, tokenizer: PreTrainedTokenizerBase, options: DataOptions, progress: Progress | None
) -> Iterator[tuple[Document, Tokens]]:
    """Yields the document and tokens of each row; adds the message of each bad row to the report."""
    pending: list[Document] = []
    for index in range(len(rows)):
        try:
            content = read_row(rows.read(index), report.format, options.columns)
            pending.append(render(content, tokenizer))
            report.is_chat = report.is_chat or isinstance(content, Conversation)
        except DataError as exc:
            report.bad_rows.append(str(exc))
        if len(pending) == _BATCH or index == len(rows) - 1:
            yield from zip(pending, tokenize(pending, tokenizer) if pending else [], strict=True)
            pending = []
            if progress is not None:
                progress(index + 1, len(rows))


def _count(report: Report, document: Document, tokens: Tokens, parts: list[Tokens]) -> None:
    kept = sum(map(len, parts))
    report.examples += len(parts)
    report.tokens += kept
    report.learned += sum(int((part.weights > 0).sum()) for part in parts)
    report.split += len(parts) > 1
    if kept < len(tokens) and not document.is_continuous:
        report.truncated += 1
        report.removed += len(tokens) - kept
    if not tokens.is_aligned:
        report.unaligned += 1
        report.first_unaligned = report.first_unaligned or str(document.source)
