"""Reference implementation of sampling in NumPy: full sorts, float64 throughout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from puna.config import Sampling
from puna.errors import BackendError, RequestError

CLOSE = 2e-6
"""Relative errors of the native library, whose weights are float32, are well below this number."""


class ReferenceSampler:
    """A slow sampler with the state of `puna.engine.sampling.Sampler`.

    Attributes:
        close: whether a limit or the random number of the last choice is so close to the value that it is compared
            with that rounding to float32 may change the choice.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int, end_ids: Iterable[int] = ()
    ) -> None:
        self.sampling = sampling
        self.generator = np.random.default_rng(sampling.seed)
        self.seen = np.zeros(vocab_size, dtype=bool)
        self.seen[list(prompt_ids)] = True
        self.generated = np.zeros(vocab_size, dtype=np.int64)
        self.end_ids = list(end_ids)
        self.close = False
        self.uniform: float | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """Returns which tokens may be chosen."""
        allowed = np.ones(len(self.seen), dtype=bool)
        if self.sampling.allowed_token_ids is not None:
            allowed[:] = False
            allowed[list(self.sampling.allowed_token_ids)] = True
        if self.generated.sum() < self.sampling.min_tokens:
            allowed[self.end_ids] = False
        return allowed

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the id of the next token. `logits` has shape (vocab_size,) and is not modified."""
        if not np.isfinite(logits).all():
            raise BackendError("the model's logits are not finite")
        if self.uniform is None:
            self.uniform = 0.0 if self.sampling.temperature == 0 else self.generator.random()
        logits = self.changed(logits)
        allowed = self.allowed()
        if not allowed.any():
            raise RequestError("no token may be chosen")
        self.close = False
        ids = np.flatnonzero(allowed)
        if self.sampling.temperature == 0:
            return int(ids[logits[ids].argmax()])
        return self._draw(ids, logits[ids])

    def commit(self, token: int) -> None:
        """Records a chosen token."""
        self.seen[token] = True
        self.generated[token] += 1
        self.uniform = None

    def changed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the logits with the bias and the penalties."""
        sampling, largest = self.sampling, float(np.finfo(np.float32).max)
        values = logits.astype(np.float64)
        for token, bias in sampling.logit_bias.items():
            values[token] = np.float32(min(largest, max(-largest, values[token] + bias)))
        for token in np.flatnonzero(self.seen) if sampling.counts_tokens else ():
            penalty = sampling.repetition_penalty
            value = values[token] / penalty if values[token] > 0 else values[token] * penalty
            value -= self.generated[token] * sampling.frequency_penalty
            value -= sampling.presence_penalty * (self.generated[token] > 0)
            values[token] = np.float32(min(largest, max(-largest, value)))
        return values.astype(np.float32)

    def _draw(self, ids: NDArray[np.int64], logits: NDArray[np.float32]) -> int:
        """Draws one of the tokens `ids`, which have these logits."""
        sampling = self.sampling
        # Division by a tiny temperature may overflow. The maximum is subtracted first, so the most likely token stays
        # at 0.
        with np.errstate(over="ignore"):
            scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
        order = np.argsort(-scaled, kind="stable") if sampling.temperature < 1e3 else np.argsort(-logits, kind="stable")
        if sampling.top_k:
            order = order[: sampling.top_k]
        weights = np.exp(scaled[order])  # descending
        is_kept = np.ones(len(order), dtype=bool)
        if sampling.top_p < 1.0:
            before = np.cumsum(weights) - weights
            is_kept &= before < sampling.top_p * weights.sum()
            is_kept[0] = True
            self._compare(before[1:] / weights.sum(), sampling.top_p)
        is_kept &= weights >= sampling.min_p
        if sampling.min_p > 0:
            self._compare(weights[weights < 1], sampling.min_p)
        order, weights = order[is_kept], weights[is_kept]
        if sampling.typical_p < 1.0:
            is_kept = self._typical(weights / weights.sum())
            order, weights = order[is_kept], weights[is_kept]
        by_id = np.argsort(order)
        cumulative = np.cumsum(weights[by_id]) / weights.sum()
        assert self.uniform is not None
        self._compare(cumulative, self.uniform)
        chosen = min(int(np.searchsorted(cumulative, self.uniform, side="right")), len(by_id) - 1)
        return int(ids[order[by_id[chosen]]])

    def _typical(self, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
        surprise = np.array([np.inf if p == 0 else -np.log(p) for p in probabilities])
        entropy = sum(p * -np.log(p) for p in probabilities if p > 0)
        distance = np.abs(surprise - entropy)
        total, last = 0.0, 0.0
        for index in np.argsort(distance, kind="stable"):
            last = distance[index]
            total += probabilities[index]
            self._compare(np.array([total]), self.sampling.typical_p)
            if total >= self.sampling.typical_p:
                break
        self._compare(distance[np.abs(distance - last) > 1e-12], last)
        return distance <= last + 1e-12

    def _compare(self, values: NDArray[np.float64], limit: float) -> None:
        self.close |= bool((np.abs(values - limit) <= CLOSE * max(1e-3, limit)).any())
