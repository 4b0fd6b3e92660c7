"""Reference implementation of sampling in NumPy: a full sort, float64 throughout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from puna.engine.request import Sampling
from puna.errors import BackendError


class ReferenceSampler:
    """A slow sampler with the interface of `puna.engine.sampling.Sampler`."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self.sampling = sampling
        self.generator = np.random.default_rng(sampling.seed)
        self.seen = np.zeros(vocab_size, dtype=bool)
        self.seen[list(prompt_ids)] = True

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the id of the next token. `logits` has shape (vocab_size,) and is not modified."""
        sampling = self.sampling
        if not np.isfinite(logits).all():
            raise BackendError("the model's logits are not finite")
        if sampling.repetition_penalty != 1.0:
            penalty = np.float32(sampling.repetition_penalty)
            penalised = np.where(logits > 0, logits / penalty, logits * penalty)
            logits = np.where(self.seen, penalised, logits)
        token = int(logits.argmax()) if sampling.temperature == 0 else self._draw(logits)
        self.seen[token] = True
        return token

    def _draw(self, logits: NDArray[np.float32]) -> int:
        # Division by a tiny temperature may overflow. The maximum is subtracted first, so the most likely token stays
        # at 0.
        with np.errstate(over="ignore"):
            scaled = (logits.astype(np.float64) - logits.max()) / self.sampling.temperature
        order = np.argsort(-scaled, kind="stable")
        if self.sampling.top_k:
            order = order[: self.sampling.top_k]
        weights = np.exp(scaled[order])
        is_kept = np.ones(len(order), dtype=bool)
        if self.sampling.top_p < 1.0:
            probabilities = weights / weights.sum()
            is_kept &= np.cumsum(probabilities) - probabilities < self.sampling.top_p
            is_kept[0] = True
        is_kept &= weights >= self.sampling.min_p * weights[0]
        by_id = np.sort(order[is_kept])
        probability = np.zeros(len(scaled))
        probability[order] = weights
        cumulative = np.cumsum(probability[by_id])
        point = self.generator.random() * cumulative[-1]
        return int(by_id[min(np.searchsorted(cumulative, point, side="right"), len(by_id) - 1)])
