"""`set_seed`, as in transformers."""

from __future__ import annotations

import importlib.util
import random

from puna.errors import RequestError, show


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seeds the random generators of Python, NumPy and PyTorch, on all devices.

    Generation on the native runtime has a seed per request instead: the option `seed`.

    Args:
        seed: 0 to 2^32 - 1, the range of NumPy's seeds.
        deterministic: make PyTorch use deterministic algorithms only.

    Raises:
        RequestError: if `seed` is not an integer in this range.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise RequestError(f"seed is {show(seed)}; it must be an integer from 0 to 4294967295")
    random.seed(seed)
    if importlib.util.find_spec("numpy") is not None:
        import numpy as np

        np.random.seed(seed)
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.manual_seed(seed)
        if deterministic:
            torch.use_deterministic_algorithms(True)
