"""`NativeSampler`: chooses a token from logits, in the native library."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from puna.errors import BackendError
from puna.native.library import NativeSampling, chosen_kernels, load_library

_INT32_MAX = 2**31 - 1


class NativeSampler:
    """Draws tokens with fixed settings.

    Args:
        vocab_size: number of logits.
        temperature, top_k, top_p, min_p, repetition_penalty: as in `puna.engine.Sampling`.
    """

    def __init__(
        self,
        vocab_size: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
    ) -> None:
        self._library = load_library()
        self._kernels = chosen_kernels().encode()
        self._vocab_size = vocab_size
        self._options = NativeSampling(temperature, top_p, min_p, repetition_penalty, min(top_k, _INT32_MAX))

    def draw(self, logits: NDArray[np.float32], seen: NDArray[np.bool_], uniform: float) -> int:
        """Returns the id of a token.

        Args:
            logits: (vocab_size,), not modified.
            seen: (vocab_size,), True for the tokens that the repetition penalty applies to.
            uniform: a random number in [0, 1).

        Raises:
            BackendError: if a logit is not finite.
        """
        assert logits.shape == seen.shape == (self._vocab_size,) and logits.dtype == np.float32
        logits = np.ascontiguousarray(logits)
        token = int(
            self._library.puna_sample(
                self._kernels,
                logits.ctypes.data,
                self._vocab_size,
                seen.ctypes.data,
                ctypes.byref(self._options),
                uniform,
            )
        )
        if token == -1:
            raise BackendError(
                "the model's logits are not finite; the weights are damaged, or values exceed the range of dtype"
            )
        if token < 0:
            raise BackendError(f"the native runtime failed: {self._library.puna_error().decode()}")
        return token
