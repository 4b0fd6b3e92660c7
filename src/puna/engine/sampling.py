"""`Sampler`: chooses the next token of one request from its logits, with the request's own random generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from puna.engine.request import Sampling
from puna.native.sampling import NativeSampler


class Sampler:
    """Applies a request's `Sampling` in the order of transformers: penalty, temperature, top-k, top-p, min-p."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self.generator = np.random.default_rng(sampling.seed)
        self.greedy = sampling.temperature == 0
        self.seen = np.zeros(vocab_size, dtype=bool)
        self.seen[list(prompt_ids)] = True
        self._native = NativeSampler(
            vocab_size,
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
        )

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Returns the id of the next token. `logits` has shape (vocab_size,) and is not modified."""
        uniform = 0.0 if self.greedy else self.generator.random()
        token = self._native.draw(logits, self.seen, uniform)
        self.seen[token] = True
        return token
