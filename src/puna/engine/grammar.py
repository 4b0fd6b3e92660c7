"""`Grammar`: the rule that an answer must follow. `GrammarState`: the position of one answer in its grammar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Matcher(Protocol):
    """The methods of `llguidance.LLMatcher` that the engine uses. After an error, a matcher remains in this state."""

    def deep_copy(self) -> Matcher:
        """Returns an independent matcher in the same state."""
        ...

    def consume_token(self, token: int, /) -> bool:
        """Adds a token; returns whether the grammar allows it."""
        ...

    def unsafe_compute_mask_ptr(self, address: int, size: int, /) -> None:
        """Writes a bit per token to memory, `size` bytes: 1 if the token may follow."""
        ...

    def is_accepting(self) -> bool:
        """Whether the text may end here."""
        ...

    def is_stopped(self) -> bool:
        """Whether no token may follow."""
        ...

    def is_error(self) -> bool:
        """Whether an error has occurred."""
        ...

    def get_error(self) -> str:
        """Returns the error, or an empty text."""
        ...


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar for one vocabulary. Several requests may share it.

    Attributes:
        branches: (matcher, first tokens): the answer begins with a token of one of these disjoint sets, and continues
            as the matcher of this set allows. A set has a bit per token, lowest bit first. None means all tokens.
        size: number of bits of the masks of the matchers, at least the vocabulary's size.
    """

    branches: tuple[tuple[Matcher, NDArray[np.uint32] | None], ...]
    size: int


class GrammarState:
    """The position of one answer in its grammar. Only `commit` advances it.

    Args:
        end: the ids that end the answer, a bit per token.

    Attributes:
        allowed: a bit per token, lowest bit first, 1 if the token may follow. Set by `Masks.compute`.
    """

    def __init__(self, grammar: Grammar, end: NDArray[np.uint32]) -> None:
        self._branches = [(matcher.deep_copy(), first) for matcher, first in grammar.branches]
        self._end = end
        self._size = grammar.size
        self.allowed = np.zeros_like(end)

    @property
    def error(self) -> str | None:
        """Why the grammar does not allow any token; None if it does."""
        errors = [matcher.get_error().partition("<")[0].strip() for matcher, _ in self._branches if matcher.is_error()]
        return errors[0] if errors and len(errors) == len(self._branches) else None

    @property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return any(matcher.is_accepting() and not matcher.is_error() for matcher, _ in self._branches)

    @property
    def complete(self) -> bool:
        """Whether the answer must end here."""
        return self.accepts and all(matcher.is_stopped() for matcher, _ in self._branches)

    def commit(self, token: int) -> None:
        """Advances the grammar by a chosen token; an error is reported by `error`."""
        self._branches = [(matcher, None) for matcher, first in self._branches if _contains(first, token)]
        for matcher, _ in self._branches:
            matcher.consume_token(token)


class Masks:
    """Computes the tokens that grammars allow. The buffer is reused in each step."""

    def __init__(self) -> None:
        self._buffer = np.zeros((0, 0), np.uint32)
        self._executor: Any = None

    def compute(self, states: Sequence[GrammarState]) -> None:
        """Sets `allowed` of each state, with several threads if there are several matchers."""
        jobs = [(state, matcher, first) for state in states for matcher, first in state._branches]
        if not jobs:
            return
        words = -(-max(state._size for state in states) // 32)
        if self._buffer.shape[0] < len(jobs) or self._buffer.shape[1] != words:
            self._buffer = np.zeros((max(len(jobs), len(self._buffer)), words), np.uint32)
        self._fill([matcher for _, matcher, _ in jobs])
        for state in states:
            state.allowed[:] = 0
        for (state, matcher, first), row in zip(jobs, self._buffer, strict=False):
            if not matcher.is_error():  # the mask of a failed matcher allows the end
                tokens = row[: len(state.allowed)]
                state.allowed |= tokens if first is None else tokens & first
        for state in states:
            state.allowed &= ~state._end
            if state.accepts:
                state.allowed |= state._end

    def _fill(self, matchers: list[Matcher]) -> None:
        if len(matchers) == 1:
            matchers[0].unsafe_compute_mask_ptr(self._buffer.ctypes.data, self._buffer[0].nbytes)
            return
        if self._executor is None:
            from llguidance import LLExecutor

            self._executor = LLExecutor()
        jobs = [(matcher, row) for row, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(
            jobs, self._buffer.ctypes.data, self._buffer[0].nbytes, len(self._buffer)
        )


def token_bits(size: int, ids: Iterable[int]) -> NDArray[np.uint32]:
    """Returns a bit for each of `size` tokens, lowest bit first: 1 for `ids`, of which larger ones are ignored."""
    tokens = np.zeros(-(-size // 32) * 32, bool)
    tokens[[token for token in ids if token < size]] = True
    return np.packbits(tokens, bitorder="little").view("<u4").astype(np.uint32)


def _contains(tokens: NDArray[np.uint32] | None, token: int) -> bool:
    return tokens is None or bool(tokens[token // 32] >> np.uint32(token % 32) & 1)
