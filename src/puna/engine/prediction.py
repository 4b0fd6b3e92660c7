"""`Prediction`: a text that an answer is expected to resemble, as a source of guesses.

The answer follows the prediction until it deviates. The prediction is found again where its last n-gram, of the sizes
of prompt lookup, equals that of the answer, at the first position after the deviation if there are several.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from puna.engine.lookup import NGRAM_SIZES

MAX_GUESS = 31
"""Maximum number of tokens guessed at once; together with the token before them, they fill four tiles."""

_FIRST_ACCURACY, _WEIGHT = 0.8, 0.15
"""The expected accuracy of the first guess, and the weight of the latest token in the average accuracy."""


class Prediction:
    """The position of one answer in its prediction.

    Args:
        ids: the tokens of the prediction.

    Attributes:
        accuracy: share of correct guesses among the latest tokens for which the prediction had a guess.
        accepted: number of tokens that the prediction guessed correctly.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.accuracy = _FIRST_ACCURACY
        self.accepted = 0
        self._ids = ids
        self._position = 0  # of the next token; the length of `ids` if there is none
        self._aligned = True
        self._latest: tuple[int, ...] = ()  # the last tokens of the answer
        self._index: dict[tuple[int, ...], list[int]] | None = None  # n-gram -> positions after it

    @property
    def rejected(self) -> int:
        """Number of tokens of the prediction that the answer does not have."""
        return max(0, len(self._ids) - self.accepted)

    def guess(self, limit: int) -> tuple[int, ...]:
        """Returns up to `limit` tokens that may follow; empty if the answer does not follow the prediction here."""
        if not self._aligned:
            return ()
        return tuple(self._ids[self._position : self._position + min(limit, MAX_GUESS)])

    def observe(self, token: int) -> None:
        """Compares the prediction with the next token of the answer."""
        self._latest = (*self._latest, token)[-max(NGRAM_SIZES) :]
        if self._aligned and self._position < len(self._ids):
            correct = self._ids[self._position] == token
            self.accuracy += _WEIGHT * (correct - self.accuracy)
            self._aligned = correct
            if correct:
                self.accepted += 1
                self._position += 1
                return
        self._align()

    def _align(self) -> None:
        """Finds the last tokens of the answer in the prediction."""
        if self._index is None:
            self._index = {}
            for size in NGRAM_SIZES:
                for end in range(size, len(self._ids) + 1):
                    self._index.setdefault(tuple(self._ids[end - size : end]), []).append(end)
        for size in NGRAM_SIZES:
            if ends := self._index.get(self._latest[-size:]):
                after = bisect_left(ends, self._position)
                self._position, self._aligned = ends[after if after < len(ends) else 0], True
                return
