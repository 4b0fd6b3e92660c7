"""Names and values of columns with labels and their texts. `tasks/labels.py` reads them; `read.py` recognises them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

SAMPLE = 200
"""Number of rows whose values tell the columns, if the names do not."""

_MIN_ROWS = 10
_LABEL_SHARE = 0.2
"""Different values of a column with labels, at most, relative to the rows."""

_TEXT_SHARE, _TEXT_WORDS = 0.5, 3
"""Different values of a column with texts, at least, relative to the rows, and words of each, on average."""

_FRACTION = re.compile(r"\s*[-+]?\d*[.,]\d+\s*")

_IDENTIFIER = re.compile(
    r"\W*|unnamed.*|key\W*|(.*(?<!yes)[^a-z/])?no\W*|(.*[^a-z])?(id|ids|idx|index|nr|number|row|uid|guid|uuid)\W*"
    r"|(?-i:.*[a-z](I[dD]s?|Idx|Index|No|Nr|Number|U[iI][dD]|G[uU][iI][dD]|U[uU][iI][dD]))\W*",
    re.IGNORECASE,
)
"""Names of columns with identifiers."""

TEXT = ("text", "sentence", "content", "review", "message", "body", "document", "tweet", "comment", "question", "input")
"""Names of the column with the text, the most usual first."""

CERTAIN_LABEL = ("label", "labels", "class", "category", "sentiment", "intent")
"""Names of a column that has labels, even if nothing says that the task is classify."""

LABEL = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "tags", "rating", "score")
"""Names of the column with the label of the task classify, the most usual first."""


def certain_label(names: list[str]) -> str:
    """Returns the first of these columns that has labels, whatever the case of its letters; "" if none does."""
    return next((name for name in names if name.strip().casefold() in CERTAIN_LABEL), "")


def columns_by_values(
    rows: Sequence[Mapping[str, Any]], text: str | None = None, label: str | None = None
) -> tuple[str | None, str | None]:
    """Returns the columns with the texts and the labels of some rows; None for one that the values do not tell.

    Texts are different in most rows and have several words. Labels repeat; their column is told only if every other
    column has texts or identifiers, since any other could have the labels as well: one with many labels, for example.

    Args:
        text, label: columns that are known.
    """
    if len(rows) < _MIN_ROWS:
        return text, label
    columns = _by_name(rows)
    texts = [name for name, values in columns.items() if name != label and _are_texts(values)]
    others = [
        name for name, values in columns.items() if name != text and name not in texts and not _are_identifiers(values)
    ]
    if label is None and len(others) == 1 and _are_labels(columns[others[0]]):
        label = others[0]
    return text or (texts[0] if len(texts) == 1 else None), label


def likely_columns(rows: Sequence[Mapping[str, Any]], has_text: bool) -> tuple[str, str]:
    """Returns a column for the texts and another for the labels, as an example in an error; ".." if there is none.

    The texts are the longest values. Identifiers have no labels.

    Args:
        has_text: whether one of the columns has the texts.
    """
    columns = _by_name(rows)
    text = max(columns, key=lambda name: sum(len(str(value)) for value in columns[name]), default="..")
    others = [name for name in columns if not has_text or name != text]
    labels = [name for name in others if not _IDENTIFIER.fullmatch(name) and not _are_identifiers(columns[name])]
    named = [name for name in others if not _IDENTIFIER.fullmatch(name)]
    return text, (labels or named or others or [".."])[0]


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the values of all columns; None for those that a row lacks."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _are_texts(values: list[Any]) -> bool:
    if not all(isinstance(value, str) for value in values):
        return False
    words = sum(len(value.split()) for value in values)
    return len(set(values)) >= _TEXT_SHARE * len(values) and words >= _TEXT_WORDS * len(values)


def _are_labels(values: list[Any]) -> bool:
    if not all(isinstance(value, str | Integral) and value != "" for value in values):
        return False
    return 2 <= len(set(values)) <= max(2, _LABEL_SHARE * len(values))


def _are_identifiers(values: list[Any]) -> bool:
    """Returns whether all values are different names or whole numbers; different fractions are measured values."""
    if not all(isinstance(value, str | Integral) for value in values):
        return False
    return len(set(values)) == len(values) and not any(_FRACTION.fullmatch(str(value)) for value in values)
