"""Random weights of a configuration, in NumPy."""

from __future__ import annotations

import numpy as np

from puna.checkpoint.names import expected_tensors
from puna.config import LlamaConfig


def random_state(config: LlamaConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns float32 tensors under Hugging Face's names. Norm weights are close to 1, and biases are not 0."""
    random = np.random.default_rng(seed)
    state = {}
    for name, shape in expected_tensors(config, "lm"):
        values = random.normal(0, 0.3 if len(shape) == 1 else config.initializer_range, shape)
        state[name] = (values + ("norm" in name)).astype(np.float32)
    return state
