"""Speculation by prompt lookup (Saxena, 2023): guesses the tokens that followed the last n-gram when it last occurred.

Useful where a text repeats itself: summaries, edits, code. It needs no draft model.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_SIZES = (3, 2)
"""Lengths of the n-grams that are looked up, in this order."""

MAX_GUESS = 8
"""Maximum number of tokens guessed at once; reduced after wrong guesses."""


class Lookup:
    """Guesses the continuation of one sequence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence
        self._limit = MAX_GUESS

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens. An n-gram is indexed once a token follows it, so that the last one does not match itself."""
        for token in tokens:
            end = len(self._tokens)
            for size in NGRAM_SIZES:
                if end >= size:
                    self._next[tuple(self._tokens[end - size :])] = end
            self._tokens.append(token)

    def guess(self, limit: int) -> tuple[int, ...]:
        """Returns up to `limit` tokens that may follow; empty if the last n-grams occur nowhere else."""
        for size in NGRAM_SIZES:
            start = self._next.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if start is not None:
                return tuple(self._tokens[start : start + min(limit, self._limit)])
        return ()

    def adapt(self, guessed: int, accepted: int) -> None:
        """Limits the next guess to two tokens more than the last guess had right."""
        if guessed:
            self._limit = max(1, min(MAX_GUESS, accepted + 2))
