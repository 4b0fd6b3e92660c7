"""`RecentSequences`: explains why the prefix cache did not contain more of a prompt.

The cache finds pages by the digest of all tokens before them, so it cannot tell which tokens differ. This module keeps
the tokens of the latest sequences, and compares a prompt with them if its request asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.engine.request import MissReason, PrefixMiss, Request

MAX_SEQUENCES, MAX_TOKENS = 64, 1 << 20
"""Maximum number of stored sequences, and of all their tokens, each of 4 bytes."""

_TOLERANCE = 8
"""A cached prefix may be shorter by this number of tokens than the common beginning: a page is not copied for fewer."""


_Ids = NDArray[np.int32]


class _Sequence(NamedTuple):
    digest: str  # of the adapter
    salt: str
    tokens: _Ids


class RecentSequences:
    """The tokens of the latest sequences: prompts and their answers."""

    def __init__(self) -> None:
        self._sequences: deque[_Sequence] = deque()
        self._tokens = 0  # in all sequences

    def add(self, request: Request, tokens: Sequence[int]) -> None:
        """Adds a sequence, without its virtual tokens; the oldest ones are dropped."""
        self._sequences.append(_sequence(request, tokens))
        self._tokens += len(self._sequences[-1].tokens)
        while len(self._sequences) > MAX_SEQUENCES or (self._tokens > MAX_TOKENS and len(self._sequences) > 1):
            self._tokens -= len(self._sequences.popleft().tokens)

    def explain(self, request: Request, cached: int, running: Iterable[Request] = ()) -> PrefixMiss | None:
        """Returns why only `cached` tokens of a prompt were found; None if all except the last token were.

        Args:
            running: further requests whose prompts may be in the cache.
        """
        prompt = np.asarray(request.prompt_ids, np.int32)
        if cached >= len(prompt) - 1:
            return None
        digest = _digest(request)
        prompts = [_sequence(other, other.first_tokens) for other in running if other is not request]
        others = [*self._sequences, *prompts]
        similar = [(_common(prompt, other.tokens), number) for number, other in enumerate(others)]
        own = [item for item in similar if (others[item[1]].digest, others[item[1]].salt) == (digest, request.salt)]
        length, number = max(own, default=(0, -1))
        if length == 0:
            length, number = max(similar, default=(0, -1))
            if length == 0:
                return PrefixMiss("empty", 0, request.prompt_ids[0])
            reason: MissReason = "adapter" if others[number].digest != digest else "salt"
            return PrefixMiss(reason, 0, request.prompt_ids[0])
        if length > cached + _TOLERANCE:
            return PrefixMiss("evicted", cached, request.prompt_ids[cached])
        tokens, token = others[number].tokens, request.prompt_ids[length] if length < len(prompt) else None
        if length < len(tokens) and token is not None:
            return PrefixMiss("input", length, token, int(tokens[length]))
        return PrefixMiss("end", length, token)


def _sequence(request: Request, tokens: Sequence[int]) -> _Sequence:
    return _Sequence(_digest(request), request.salt, np.asarray(tokens[request.virtual_tokens :], np.int32))


def _digest(request: Request) -> str:
    return "" if request.adapter is None else request.adapter.digest


def _common(first: _Ids, second: _Ids) -> int:
    """Returns the number of tokens with which both sequences begin."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length
