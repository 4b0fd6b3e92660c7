"""Windows of tokens: the documents of pretraining."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.errors import DataError
from puna.training.batch import Example, Source
from puna.training.pretraining.token_files import TokenFiles


@dataclass(frozen=True)
class TokenWindows:
    """Consecutive windows of tokens, each with `length` predictions.

    Window i predicts the tokens from i * length + 1 on. Its first token is the one before these, or BOS for a tokenizer
    that begins every text with it. The order of the windows in a run is that of `order`, so that a batch is a function
    of the seed and the step alone.

    Raises:
        DataError: the texts have fewer tokens than one window.
    """

    tokens: TokenFiles
    length: int
    bos: int | None = None

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise DataError(
                f"{self.tokens.folder}: the texts have {self.tokens.total} tokens, but a window has {self.length + 1}; "
                "give more text, or a smaller max_length"
            )
        weights = np.ones(self.length + 1, np.float32)
        weights[0] = 0
        object.__setattr__(self, "_weights", weights)  # shared by all examples, which never change it

    _weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return (self.tokens.total - 1) // self.length

    def __getitem__(self, index: int) -> Example:
        ids = self.tokens.read(index * self.length, self.length + 1)
        if self.bos is not None:
            ids[0] = self.bos
        assert self._weights is not None
        return Example(ids, self._weights, None, Source(str(self.tokens.folder), index + 1, "window"))

    def longest(self) -> Example:
        """Returns the first window; all have the same length."""
        return self[0]

    def digest(self) -> str:
        """Returns a hash of the texts, the tokenizer and the windows."""
        return f"{self.tokens.key} {self.length} {self.bos}"
