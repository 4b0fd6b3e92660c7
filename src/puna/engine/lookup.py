"""Speculation by prompt lookup (Saxena, 2023): guesses the tokens that followed an earlier copy of the last n-gram.

Prompt lookup is useful where a text repeats itself: summaries, edits, code. No draft model is needed. A wrong guess
costs time, because a step with more tokens takes longer; `guess_length` therefore compares expected gain and cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from puna.engine.step_times import TILE, StepTimes

NGRAM_SIZES = (3, 2)
"""Lengths of the n-grams, in the order in which they are looked up."""

MAX_GUESS = 7
"""Maximum number of tokens guessed at once; together with the token before them, they fill a tile."""

MIN_GAIN = 1.1
"""Minimum ratio of the expected tokens per second with and without guesses. It covers errors of the prediction."""

_INDEXED_PER_STEP = 1024
"""Maximum number of tokens that one step indexes, so that a long prompt does not delay other requests."""

_FIRST_ACCURACY, _FIRST_WEIGHT, _WEIGHT = 0.2, 0.3, 0.1
"""The initial accuracy of a request, and the weights of its first and of its later tokens in the moving average."""


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
        self.accuracy = _FIRST_ACCURACY
        self._weight = _FIRST_WEIGHT
        self._tokens = tokens
        self._start = start
        self._indexed = start  # n-grams that end before this position are in the index
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> position after its latest occurrence
        self._match: int | None = None  # the position after an earlier occurrence of the last n-gram

    def index(self) -> None:
        """Indexes tokens that were appended. The last n-gram is not indexed yet, so that it does not match itself."""
        tokens, first = self._tokens, self._indexed
        self._indexed = min(len(tokens), first + _INDEXED_PER_STEP)
        for position in range(first, self._indexed):
            for size in NGRAM_SIZES:
                if position - size >= self._start:
                    self._next[tuple(tokens[position - size : position])] = position
        matches = (self._next.get(tuple(tokens[-size:])) for size in NGRAM_SIZES)
        self._match = next((match for match in matches if match is not None), None)

    def guess(self, limit: int) -> tuple[int, ...]:
        """Returns up to `limit` tokens that may follow; empty if the last n-grams have not occurred earlier."""
        start = self._match
        return () if start is None else tuple(self._tokens[start : start + min(limit, MAX_GUESS)])

    def observe(self, token: int) -> None:
        """Compares the guess with the token that is about to be appended."""
        if self._match is not None:
            correct = self._tokens[self._match] == token
            self.accuracy += self._weight * (correct - self.accuracy)
            self._weight = max(_WEIGHT, 0.8 * self._weight)
            self._match = self._match + 1 if correct else None


def guess_length(
    accuracy: float,
    longest: int,
    times: StepTimes,
    tokens: int = 1,
    expected: float = 1.0,
    limit: float = float("inf"),
) -> int:
    """Returns the length of a guess that maximises the expected tokens per second of a step.

    The time of a step that guesses nothing must be known from a recent step; otherwise the length is 0.

    Args:
        accuracy: the chance that a guessed token is correct if those before it are.
        longest: maximum length.
        tokens: number of the step's other tokens, including guesses for other requests.
        expected: number of new tokens expected from these.
        limit: maximum seconds of the step.
    """
    chances = [accuracy**length for length in range(1, longest + 1)]
    plain = times.plain(tokens) if tokens == expected else times.predict(tokens)
    if sum(chances) < (MIN_GAIN - 1) * expected or not plain:
        return 0
    best, result = MIN_GAIN * expected / plain, 0
    for count in _efficient_counts(tokens, tokens + longest):
        seconds = max(plain, times.predict(count))
        rate = (expected + sum(chances[: count - tokens])) / seconds
        if rate > best and seconds <= limit:
            best, result = rate, count - tokens
    return result


def _efficient_counts(first: int, last: int) -> list[int]:
    """Returns the numbers of tokens after `first` up to `last` that fill tiles: only their times are measured."""
    return [count for count in (2, 4, *range(TILE, last + 1, TILE)) if first < count <= last]
