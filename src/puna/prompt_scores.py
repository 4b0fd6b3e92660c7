"""Results computed from the output of a prompt, chunk by chunk: `PromptLogits`, `PromptLosses`, `PromptState`.

The stepping thread feeds them. It copies or reduces each chunk of logits itself, because chunks that wait for a slow
consumer could exceed the memory: a chunk of 512 tokens has 262 MB with a vocabulary of 128,000 tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.backend import token_losses
from puna.engine import Event, LoadedAdapter, Request
from puna.errors import BackendError
from puna.native.sampling import logprob_values


class PromptResult(ABC):
    """The result of a request that reads a prompt and generates nothing.

    Args:
        ids: the prompt.
        first: position of the first token whose output is needed; the tokens before it may come from the prefix cache.
        adapter: changes the model for this request.
        hidden: whether the output is the hidden states, not the logits.
    """

    def __init__(
        self, ids: tuple[int, ...], first: int = 0, adapter: LoadedAdapter | None = None, *, hidden: bool = False
    ) -> None:
        output: Literal["tokens", "hidden"] = "hidden" if hidden else "tokens"
        self.request = Request(
            ids, max_tokens=0, prompt_logits=not hidden, output=output, logits_from=first, adapter=adapter
        )
        self.error: Exception | None = None
        self._rows = 0  # number of tokens whose output was added
        self._complete = False

    @property
    def finished(self) -> bool:
        """Whether the result is complete or has failed."""
        return self._complete or self.error is not None

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds the event of a step; the times are ignored."""
        self.error = event.error
        rows = event.logits if event.hidden is None else event.hidden
        if rows is not None:
            self._add(rows, self._rows)
            self._rows += len(rows)
        self._complete = event.finish_reason is not None

    def take(self) -> tuple[()]:
        """Returns no pieces: there is only one result, at the end."""
        return ()

    @abstractmethod
    def _add(self, rows: NDArray[np.float32], start: int) -> None:
        """Adds the output of the next tokens; `start` is the number of rows before them."""


class PromptLogits(PromptResult):
    """The logits after each token of a prompt from `first` on: `rows`, float32, (T - first, vocab_size)."""

    rows: NDArray[np.float32]

    def _add(self, rows: NDArray[np.float32], start: int) -> None:
        if start == 0:
            count = len(self.request.prompt_ids) - self.request.logits_from
            self.rows = np.empty((count, rows.shape[1]), np.float32)
        self.rows[start : start + len(rows)] = rows


class PromptLosses(PromptResult):
    """The negative log-likelihood in nats of each token after `first`: `values`, float64, (T - 1 - first,).

    `greedy` tells whether each of these tokens is one of the most likely. Without `exact`, the values are those of the
    option `prompt_logprobs`, to the bit, instead of being computed in float64.
    """

    def __init__(
        self, ids: tuple[int, ...], first: int = 0, adapter: LoadedAdapter | None = None, exact: bool = True
    ) -> None:
        super().__init__(ids, first, adapter)
        self._exact = exact
        self._targets = ids[first + 1 :]
        self.values = np.empty(len(self._targets))
        self.greedy = True

    def _add(self, rows: NDArray[np.float32], start: int) -> None:
        targets = np.asarray(self._targets[start : start + len(rows)], np.int64)
        rows = rows[: len(targets)]
        if self._exact:
            self.values[start : start + len(targets)], greedy = token_losses(rows, targets)
        else:
            self.values[start : start + len(targets)] = -logprob_values(rows, targets)
            greedy = bool((rows[np.arange(len(rows)), targets] >= rows.max(axis=-1)).all())
        self.greedy = self.greedy and greedy


class PromptState(PromptResult):
    """The mean of the hidden states of a prompt's tokens from `first` on, divided by its length if `normalize`."""

    def __init__(
        self, ids: tuple[int, ...], first: int, normalize: bool = False, adapter: LoadedAdapter | None = None
    ) -> None:
        super().__init__(ids, first, adapter, hidden=True)
        self._normalize = normalize
        self._sum: NDArray[np.float64] | None = None

    def _add(self, rows: NDArray[np.float32], start: int) -> None:
        if not np.isfinite(rows).all():
            raise BackendError(
                "the model's hidden states are not finite; the weights are damaged, or values exceed the range of dtype"
            )
        if self._sum is None:
            self._sum = np.zeros(rows.shape[1])
        for row in rows:  # one after another, so that the division into chunks does not change a bit
            self._sum += row

    @property
    def state(self) -> NDArray[np.float32]:
        """The result, once it is complete: float32, (D,)."""
        assert self._sum is not None
        mean = self._sum / self._rows
        length = math.sqrt((mean * mean).sum()) if self._normalize else 1.0
        return (mean / (length or 1.0)).astype(np.float32)
