"""Perplexity of documents by rolling log-likelihood, with the metrics of lm-eval."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from puna.errors import DataError, show
from puna.evaluation.likelihood import Progress, prefix_token, rolling_windows, score_pairs
from puna.llm import LLM
from puna.training.data.label_columns import TEXT
from puna.training.data.readers.open import open_rows


def rolling_likelihood(llm: LLM, text: str, adapter: str | None = None, limit: int | None = None) -> tuple[float, int]:
    """Returns (log-likelihood of a text in nats, number of its tokens). The prefix token precedes the text.

    Args:
        limit: maximum number of tokens of a window; by default the model's context.
    """
    ids = list(llm.tokenizer.encode(text, add_special_tokens=False))
    windows = rolling_windows(ids, prefix_token(llm), limit or llm.longest_text(adapter))
    return sum(likelihood.value for likelihood in score_pairs(llm, windows, adapter)), len(ids)


def evaluate_perplexity(
    llm: LLM,
    documents: Iterable[str],
    *,
    adapter: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns metrics of documents, each of which is read alone: every token is predicted once.

    Returns "documents", "tokens", "nll" (nats per token), "perplexity" (its exponential), and with lm-eval's
    definitions "word_perplexity", "byte_perplexity" and "bits_per_byte".

    Args:
        adapter, limit: as in `rolling_likelihood`.

    Raises:
        DataError: there is no text.
    """
    count = tokens = words = size = 0
    total = 0.0
    for text in documents:
        value, length = rolling_likelihood(llm, text, adapter, limit)
        count, tokens, total = count + 1, tokens + length, total + value
        words, size = words + len(re.split(r"\s+", text)), size + len(text.encode())
        if progress is not None:
            progress(1)
    if not tokens:
        raise DataError("the documents have no tokens; give a text")
    return {
        "documents": count,
        "tokens": tokens,
        "nll": -total / tokens,
        "perplexity": math.exp(-total / tokens),
        "word_perplexity": _exp(-total / words),
        "byte_perplexity": math.exp(-total / size),
        "bits_per_byte": -total / size / math.log(2),
    }


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def read_documents(data: Any, columns: Mapping[str, str] | None = None) -> list[str]:
    """Returns the texts of a data set with a column of texts.

    Raises:
        DataError: the column is missing, or a row has no text.
    """
    rows = open_rows(data)
    texts = []
    for index in range(len(rows)):
        row = rows.read(index)
        name = (columns or {}).get("text") or next((name for name in TEXT if name in row.values), "text")
        text = row.values.get(name)
        if not isinstance(text, str):
            raise DataError(
                f"{row.source}: the column {show(name)} is {show(text)}; it must be a text. The columns are "
                f"{', '.join(map(show, row.values))}"
            )
        texts.append(text)
    return texts
