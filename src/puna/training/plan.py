"""`Plan`: the documents of each step, and their forward passes. Pure functions of the settings and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from puna.errors import ConfigError
from puna.training.batch import Batch, Example, derived_seed, order
from puna.training.data.packing import pack
from puna.training.settings import TrainingSettings
from puna.training.tasks.base import Examples

_DEFAULT_EPOCHS = 3.0
"""As in trl and transformers."""

_cached_order = lru_cache(maxsize=2)(order)


@dataclass(frozen=True)
class Plan:
    """The order of the training documents.

    Document number n of a run (from 0) belongs to the epoch n // count and to the step n // batch_size. A step may
    contain the end of one epoch and the start of the next; the last step of a run by epochs may be smaller.

    Attributes:
        examples: the training documents.
        subset: indices of those that are not held out; None for all.
        steps: number of optimizer steps.
        documents: number of documents of all steps.
    """

    settings: TrainingSettings
    examples: Examples
    subset: NDArray[np.int64] | None
    steps: int
    documents: int

    @property
    def count(self) -> int:
        """Number of documents of an epoch."""
        return len(self.examples) if self.subset is None else len(self.subset)

    def window(self, step: int) -> list[Batch]:
        """Returns the batches of a step, counted from 0."""
        size = self.settings.batch_size
        numbers = range(step * size, min((step + 1) * size, self.documents))
        examples = [self.examples[self._index(number)] for number in numbers]
        seed = derived_seed(self.settings.seed, step)
        groups = group(examples, self.settings.micro_batch_tokens, self.settings.packing)
        return [Batch.of([examples[place] for place in places], seed, places) for places in groups]

    def first_documents(self) -> Iterator[Example]:
        """Yields the documents of the first step."""
        for number in range(min(self.settings.batch_size, self.documents)):
            yield self.examples[self._index(number)]

    def epoch(self, step: int) -> float:
        """Returns the passes over the data after `step` steps."""
        return min(step * self.settings.batch_size, self.documents) / self.count

    def _index(self, number: int) -> int:
        epoch, position = divmod(number, self.count)
        if self.settings.shuffle:
            position = int(_cached_order(self.settings.seed, epoch, self.count)[position])
        return position if self.subset is None else int(self.subset[position])


def plan_run(examples: Examples, subset: NDArray[np.int64] | None, settings: TrainingSettings) -> Plan:
    """Returns the plan of a run; `epochs` limits it if `steps` is not set, and both do if both are set."""
    count = len(examples) if subset is None else len(subset)
    if count == 0:
        raise ConfigError("there are no training documents; give data with at least one row, or a smaller eval_share")
    epochs = settings.epochs if settings.epochs is not None or settings.steps is not None else _DEFAULT_EPOCHS
    documents = [math.ceil(count * epochs)] if epochs is not None else []
    documents += [settings.steps * settings.batch_size] if settings.steps is not None else []
    return Plan(settings, examples, subset, math.ceil(min(documents) / settings.batch_size), min(documents))


def group(examples: Sequence[Example], tokens: int, packing: bool) -> list[list[int]]:
    """Returns the places of examples in groups of at most `tokens` tokens, or of one example."""
    if not packing:
        return [[place] for place in range(len(examples))]
    return pack([len(item.ids) for item in examples], tokens)


def evaluation_batches(
    examples: Examples, indices: NDArray[np.int64] | None, settings: TrainingSettings
) -> Iterator[Batch]:
    """Yields the batches of held-out documents, in their order, without reading all of them first.

    Args:
        indices: of the documents; None for all.
    """
    pending: list[Example] = []
    used = 0
    for index in range(len(examples)) if indices is None else indices:
        example = examples[int(index)]
        if pending and (not settings.packing or used + len(example.ids) > settings.micro_batch_tokens):
            yield Batch.of(pending, 0)
            pending, used = [], 0
        pending.append(example)
        used += len(example.ids)
    if pending:
        yield Batch.of(pending, 0)
