"""Results computed from the logits of a prompt, chunk by chunk: `PromptLogits` and `PromptLosses`.

The stepping thread feeds them. It copies or reduces each chunk of logits itself, because chunks that wait for a slow
consumer could exceed the memory: a chunk of 512 tokens has 262 MB with a vocabulary of 128,000 tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from puna.engine import Event, Request

_NLL_ROWS = 16
"""Number of logit rows converted to float64 at a time. It limits memory, since a row is as long as the vocabulary."""


class PromptResult(ABC):
    """The result of a request that reads a prompt and generates nothing.

    Args:
        ids: the prompt.
        first: position of the first token whose logits are needed; the tokens before it may come from the prefix cache.
    """

    def __init__(self, ids: tuple[int, ...], first: int = 0) -> None:
        self.request = Request(ids, max_tokens=0, prompt_logits=True, logits_from=first)
        self.error: Exception | None = None
        self._rows = 0  # number of tokens whose logits were added
        self._complete = False

    @property
    def finished(self) -> bool:
        """Whether the result is complete or has failed."""
        return self._complete or self.error is not None

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds the event of a step; the times are ignored."""
        self.error = event.error
        if event.logits is not None:
            self._add(event.logits, self._rows)
            self._rows += len(event.logits)
        self._complete = event.finish_reason is not None

    def take(self) -> tuple[()]:
        """Returns no pieces: there is only one result, at the end."""
        return ()

    @abstractmethod
    def _add(self, logits: NDArray[np.float32], start: int) -> None:
        """Adds logits; `start` is the number of logits before them."""


class PromptLogits(PromptResult):
    """The logits after each token of a prompt from `first` on: `rows`, float32, (T - first, vocab_size)."""

    rows: NDArray[np.float32]

    def _add(self, logits: NDArray[np.float32], start: int) -> None:
        if start == 0:
            count = len(self.request.prompt_ids) - self.request.logits_from
            self.rows = np.empty((count, logits.shape[1]), np.float32)
        self.rows[start : start + len(logits)] = logits


class PromptLosses(PromptResult):
    """The negative log-likelihood in nats of each token after `first`: `values`, float64, (T - 1 - first,)."""

    def __init__(self, ids: tuple[int, ...], first: int = 0) -> None:
        super().__init__(ids, first)
        self._targets = ids[first + 1 :]
        self.values = np.empty(len(self._targets))

    def _add(self, logits: NDArray[np.float32], start: int) -> None:
        targets = np.asarray(self._targets[start : start + len(logits)], np.int64)
        self.values[start : start + len(targets)] = _losses(logits[: len(targets)], targets)


def _losses(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns -log softmax(logits)[target] for each row, in float64."""
    result = np.empty(len(targets))
    for start in range(0, len(targets), _NLL_ROWS):
        rows = logits[start : start + _NLL_ROWS].astype(np.float64)
        rows -= rows.max(axis=-1, keepdims=True)
        target_logits = rows[np.arange(len(rows)), targets[start : start + _NLL_ROWS]]
        result[start : start + _NLL_ROWS] = np.log(np.exp(rows, out=rows).sum(axis=-1)) - target_logits
    return result
