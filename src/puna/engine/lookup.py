"""Speculation by prompt lookup (Saxena, 2023): guesses the tokens that followed an earlier copy of the last n-gram.

Prompt lookup is useful where a text repeats itself: summaries, edits, code. No draft model is needed. A wrong guess
costs time, because a step with more tokens takes longer; `guess_lengths` therefore compares expected gain and cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from puna.engine.step_times import StepTimes

NGRAM_SIZES = (3, 2)
"""Lengths of the n-grams, in the order in which they are looked up."""

MAX_GUESS = 8
"""Maximum number of tokens guessed at once."""

MIN_GAIN = 1.1
"""Minimum ratio of the expected tokens per second with and without guesses. It covers errors of the prediction."""

_INDEXED_PER_STEP = 1024
"""Maximum number of tokens that one step indexes, so that a long prompt does not delay other requests."""

_WEIGHT = 0.1
"""Weight of the latest token in the share of correct guesses."""


class Lookup:
    """An index of the n-grams of one sequence, which guesses the tokens that follow.

    Args:
        tokens: the ids of the sequence, to which its owner appends.
        start: position of the first token of the text.

    Attributes:
        accuracy: share of the latest tokens that were guessed correctly, among those for which there was a guess. It is
            measured with every generated token, whether or not the guess was used.
    """

    def __init__(self, tokens: Sequence[int], start: int = 0) -> None:
        self.accuracy = 0.5
        self._tokens = tokens
        self._start = start
        self._indexed = start  # n-grams that end before this position are in the index
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> position after its latest occurrence

    def index(self) -> None:
        """Indexes tokens that were appended. The last n-gram is not indexed yet, so that it does not match itself."""
        tokens, end = self._tokens, min(len(self._tokens), self._indexed + _INDEXED_PER_STEP)
        for position in range(self._indexed, end):
            for size in NGRAM_SIZES:
                if position - size >= self._start:
                    self._next[tuple(tokens[position - size : position])] = position
        self._indexed = end

    def guess(self, limit: int) -> tuple[int, ...]:
        """Returns up to `limit` tokens that may follow; empty if the last n-grams have not occurred earlier."""
        for size in NGRAM_SIZES:
            start = self._next.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if start is not None:
                return tuple(self._tokens[start : start + min(limit, MAX_GUESS)])
        return ()

    def observe(self, token: int) -> None:
        """Compares the guess with the token that is about to be appended."""
        if guess := self.guess(1):
            self.accuracy += _WEIGHT * ((guess[0] == token) - self.accuracy)


def guess_lengths(guesses: Sequence[tuple[float, int]], decoding: int, times: StepTimes) -> list[int]:
    """Returns the lengths of guesses that maximise the expected tokens per second of a step.

    The time of a step without guesses must be known from a recent step; otherwise all lengths are 0.

    Args:
        guesses: (accuracy, maximum length) of each request.
        decoding: number of requests that decode in the step.
    """
    lengths = [0] * len(guesses)
    chances = [
        (accuracy**length, length, index)
        for index, (accuracy, longest) in enumerate(guesses)
        for length in range(1, longest + 1)
    ]
    plain = times.plain(decoding) if chances else None
    if not plain:
        return lengths
    # The chance that a token is accepted decreases within a guess, so that sorting keeps the order of its tokens.
    chances.sort(key=lambda chance: (-chance[0], chance[1]))
    expected, best, count = float(decoding), MIN_GAIN * decoding / plain, 0
    for added, seconds in enumerate(times.predict(range(decoding + 1, decoding + len(chances) + 1)), 1):
        expected += chances[added - 1][0]
        if expected / seconds > best:
            best, count = expected / seconds, added
    for _, _, index in chances[:count]:
        lengths[index] += 1
    return lengths
