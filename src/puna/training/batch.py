"""Tokenised documents and batches of them: the interface between data, tasks and forward passes.

A batch has no padding and no mask. It is a list of documents, one after another, and their lengths; a forward pass must
keep documents apart and restart positions at each. Packing is therefore only a choice of documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Label: TypeAlias = "int | float | tuple[float, ...] | None"
"""A class index, a value (regression), one number per class (several labels), or None (no classification)."""


@dataclass(frozen=True)
class Source:
    """The place of a row in a file, for messages.

    Attributes:
        file: the path, or a name such as "the given rows".
        row: counted from 1: a line of a text file, or a row of a file without lines.
        unit: "line" or "row".
    """

    file: str
    row: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.row}"


@dataclass(frozen=True)
class Example:
    """One tokenised document.

    Attributes:
        ids: (n,) token ids.
        weights: (n,) the weight of the loss of predicting `ids[i]`: 0 without supervision, 1 for an answer, and
            `prompt_loss_weight` for a prompt. `weights[0]` is 0, because nothing precedes the first token.
        label: the label of a classification.
        source: where the row was read.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    label: Label
    source: Source


@dataclass(frozen=True)
class Batch:
    """Documents one after another, without padding.

    Attributes:
        ids: (T,) token ids.
        lengths: tokens of each document; their sum is T.
        weights: (T,) `weights[i]` is for the prediction of `ids[i]` from the tokens before it in its document.
        labels: (documents,) int64 class indices or float32 values, or (documents, classes) float32; None without
            classification.
        sources: one per document.
        seeds: of dropout and noise, one per document; pure functions of the run's seed, the step and the place of the
            document in the step, so that they do not depend on the division of a step into batches.
    """

    ids: NDArray[np.int64]
    lengths: tuple[int, ...]
    weights: NDArray[np.float32]
    labels: NDArray[Any] | None
    sources: tuple[Source, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, examples: Sequence[Example], seed: int, places: Sequence[int] | None = None) -> Batch:
        """Returns the batch of at least one example, in their order.

        Args:
            seed: of the step.
            places: of the examples in the step; by default 0, 1, ...
        """
        assert examples, "a batch has at least one document"
        return cls(
            np.concatenate([example.ids for example in examples]).astype(np.int64),
            tuple(len(example.ids) for example in examples),
            np.concatenate([example.weights for example in examples]).astype(np.float32, copy=False),
            _labels([example.label for example in examples]),
            tuple(example.source for example in examples),
            tuple(derived_seed(seed, place) for place in (range(len(examples)) if places is None else places)),
        )

    @property
    def tokens(self) -> int:
        """Number of tokens, T."""
        return len(self.ids)

    @property
    def total_weight(self) -> float:
        """Divisor of the summed loss: the sum of the weights; for a classification, the number of documents."""
        return float(self.weights.sum(dtype=np.float64)) if self.labels is None else float(len(self.lengths))


def _labels(labels: list[Label]) -> NDArray[Any] | None:
    if all(label is None for label in labels):
        return None
    assert all(type(label) is type(labels[0]) for label in labels), "the labels of a batch have one type"
    return np.array(labels, np.int64 if isinstance(labels[0], int) else np.float32)


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Returns the permutation of `count` examples in an epoch, (count,).

    It depends on nothing else, so that (seed, epoch, position) is the complete state of a run's data. NumPy promises
    the bits of Philox in every release, but not the result of `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed % 2**64, epoch % 2**64], np.uint64)).random_raw(count)
    return np.argsort(bits, kind="stable")


def derived_seed(seed: int, *counters: int) -> int:
    """Returns a seed below 2**63 for a seed and counters, such as the step and the micro-batch (SplitMix64)."""
    return reduce(lambda state, counter: _mixed(state ^ _mixed(counter)), counters, _mixed(seed)) >> 1


def _mixed(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)
