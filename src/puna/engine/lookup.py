"""Speculation by prompt lookup: what followed the last words when they were met before (Saxena, 2023).

Guesses cost little where a sequence repeats itself: summaries, edits, code. No model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (3, 2)
"""Lengths of the runs of tokens that are looked up, longest first."""

MOST = 8
"""Most tokens guessed at once; fewer after guesses that failed."""


class Lookup:
    """Guesses the continuation of one sequence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self._reach = MOST

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens to the sequence. A run is entered once a token stands behind it."""
        for token in tokens:
            end = len(self._tokens)
            for size in SIZES:
                if end >= size:
                    self._behind[tuple(self._tokens[end - size :])] = end
            self._tokens.append(token)

    def guess(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; empty where the last words are new."""
        for size in SIZES:
            at = self._behind.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if at is not None:
                return tuple(self._tokens[at : at + min(most, self._reach)])
        return ()

    def learn(self, guessed: int, right: int) -> None:
        """Adapts the reach of guesses to how many of the last were right."""
        if guessed:
            self._reach = max(1, min(MOST, right + 2))
