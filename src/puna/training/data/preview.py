"""`preview`: what a model will see of its training data: the text of the ids, the learned tokens, lengths, bad rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Source
from puna.training.data.read import DataOptions, Progress, Report, iter_parts
from puna.training.data.tokenization import Tokens


@dataclass(frozen=True)
class Sample:
    """One example.

    Attributes:
        source: where its row was read.
        ids, weights: (n,) the tokens, and their weights in the loss.
        learned: number of tokens of answers that are learned.
        pieces: the text of consecutive tokens of equal weight, and this weight.
        removed: number of tokens of the row that are not in the example.
    """

    source: Source
    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    learned: int
    pieces: list[tuple[str, float]]
    removed: int


@dataclass(frozen=True)
class Preview:
    """What was read.

    Attributes:
        report: counts, and the messages of the bad rows.
        lengths: (rows,) tokens of each row that can be used, before truncation.
        samples: the first examples.
    """

    report: Report
    lengths: NDArray[np.int32]
    samples: list[Sample]


def preview(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    count: int = 3,
    progress: Progress | None = None,
) -> Preview:
    """Reads all rows as the training does, and returns the first `count` examples; bad rows are not errors.

    Raises:
        DataError: the data cannot be opened, or have no known format.
    """
    report, lengths, samples = Report(), array("i"), list[Sample]()
    for document, tokens, parts in iter_parts(data, report, tokenizer, options, progress):
        lengths.append(len(tokens))
        for part in parts[: max(count - len(samples), 0)]:
            removed = 0 if len(parts) > 1 else len(tokens) - len(part)
            samples.append(_sample(part, document.source, removed, tokenizer, options.prompt_loss_weight))
    return Preview(report, np.array(lengths, np.int32), samples)


def _sample(
    part: Tokens, source: Source, removed: int, tokenizer: PreTrainedTokenizerBase, prompt_weight: float
) -> Sample:
    weights = part.loss_weights(prompt_weight)
    learned = int((part.weights > 0).sum())
    return Sample(source, part.ids, weights, learned, list(_pieces(part.ids, weights, tokenizer)), removed)


def _pieces(
    ids: NDArray[np.int32], weights: NDArray[np.float32], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, float]]:
    """Yields the text of consecutive tokens of equal weight, joined the decoded text of all ids.

    A character whose bytes have different weights belongs to the token that completes it.
    """
    stream = tokenizer.text_stream(skip_special_tokens=False)
    text, shown, last = "", "", float(weights[0])  # shown: text that was yielded, and that the stream returns again
    for index, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        if weight != last:
            held = stream.rest()  # a stream holds back a token such as <0x5D>, which could begin a longer character
            if "\ufffd" not in held:
                text, shown = text + held.removeprefix(shown), held
            yield text, last
            text, last = "", weight
        new = stream.push(index)
        repeated = min(len(new), len(shown)) if new.startswith(shown) or shown.startswith(new) else 0
        text, shown = text + new[repeated:], shown[repeated:] if repeated == len(new) else ""
    yield text + stream.rest().removeprefix(shown), last


def histogram(lengths: NDArray[np.int32], limit: int) -> list[tuple[int, int, int]]:
    """Returns the shortest length, the longest length and the number of rows of each bar; bars double in width.

    Args:
        limit: max_length; a bar ends there, so that the bars after it are the rows that are too long.
    """
    top = int(lengths.max()) if len(lengths) else 0
    stops = sorted(
        {2**power for power in range(3, max(top - 1, 1).bit_length() + 1)} | ({limit} if limit < top else set())
    )
    bars: list[tuple[int, int, int]] = []
    start = 1
    for stop in stops or [8]:
        count = int(((lengths >= start) & (lengths <= stop)).sum())
        if count or bars:
            bars.append((start, stop, count))
        start = stop + 1
    return bars
