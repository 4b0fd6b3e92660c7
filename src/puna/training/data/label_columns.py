"""Names of columns with labels and their texts. `tasks/labels.py` reads them; `read.py` only recognises them."""

from __future__ import annotations

TEXT = ("text", "sentence", "content", "review", "message", "body", "document", "tweet", "comment", "question", "input")
"""Names of the column with the text, the most usual first."""

CERTAIN_LABEL = ("label", "labels", "class", "category", "sentiment", "intent")
"""Names of a column that has labels, even if nothing says that the task is classify."""

LABEL = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "tags", "rating", "score")
"""Names of the column with the label of the task classify, the most usual first."""


def certain_label(names: list[str]) -> str:
    """Returns the first of these columns that has labels, whatever the case of its letters; "" if none does."""
    return next((name for name in names if name.strip().casefold() in CERTAIN_LABEL), "")
