"""Speculation by prompt lookup (Saxena, 2023): guesses the tokens that followed an earlier copy of the last n-gram.

Prompt lookup is useful where a text repeats itself: summaries, edits, code. No draft model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM_SIZES = (3, 2)
"""Lengths of the n-grams, in the order in which they are looked up."""

MAX_GUESS = 8
"""Maximum number of tokens guessed at once; `Lookup.adapt` lowers the limit after wrong guesses."""


class Lookup:
    """An index of the n-grams of one sequence, which guesses the tokens that follow."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> position after its latest occurrence
        self._limit = MAX_GUESS

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens. The last n-gram is not indexed yet, so that it does not match itself."""
        for token in tokens:
            end = len(self._tokens)
            for size in NGRAM_SIZES:
                if end >= size:
                    self._next[tuple(self._tokens[end - size :])] = end
            self._tokens.append(token)

    def guess(self, limit: int) -> tuple[int, ...]:
        """Returns up to `limit` tokens that may follow; empty if the last n-grams have not occurred earlier."""
        for size in NGRAM_SIZES:
            start = self._next.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if start is not None:
                return tuple(self._tokens[start : start + min(limit, self._limit)])
        return ()

    def adapt(self, guessed: int, accepted: int) -> None:
        """Limits the next guess to the number of accepted tokens of the last guess, plus two."""
        if guessed:
            self._limit = max(1, min(MAX_GUESS, accepted + 2))
