"""The interface between the engine and an execution backend: `Batch` in, float32 logits out.

A backend owns the weights and the key-value caches. The engine refers to a cache by a small integer, the *slot*; how
the cache is stored (contiguously or in pages) is up to the backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig
from puna.errors import RequestError


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence: part of a prompt, or a generated token and guesses of the tokens after it.

    Attributes:
        slot: the cache that the tokens extend.
        tokens: ids, int64, shape (t,), t >= 1.
        start: position of the first token. The cache of `slot` must hold all positions before it. An
            interrupted step may have left positions from `start` on: the backend removes them.
        logits: number of final tokens whose logits are returned, 0 to t.
    """

    slot: int
    tokens: NDArray[np.int64]
    start: int
    logits: int = 1


PAGE = 64
"""Number of tokens in a page of a cache."""

Batch = Sequence[Chunk]
"""A ragged batch: chunks of any lengths, at most one chunk per slot."""


class Backend(Protocol):
    """Runs the forward pass of a batch."""

    name: str
    config: LlamaConfig
    cache_tokens: int | None
    """Maximum number of tokens in all caches together, counting each cache in complete pages; None means no limit."""

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Extends the caches by the batch's tokens; returns logits of shape (sum of the chunks' `logits`, vocab_size).

        Rows are in the order of the chunks, and of the tokens in each chunk.
        """
        ...

    def free(self, slot: int) -> None:
        """Frees the cache of `slot`, so that the slot can be used for another sequence."""
        ...

    def close(self) -> None:
        """Frees the weights and the caches; `forward` is then an error. A second call does nothing."""
        ...


def check_batch(batch: Batch, vocab_size: int, lengths: Mapping[int, int]) -> None:
    """Checks a batch before it runs; `lengths` maps slots to the number of cached positions.

    Raises:
        RequestError: if a slot appears twice, or a chunk starts beyond its cache or has an id outside the vocabulary.
    """
    slots = [chunk.slot for chunk in batch]
    if len(set(slots)) < len(slots):
        raise RequestError(f"the batch has slots {slots}; each may appear only once")
    for chunk in batch:
        tokens, start = chunk.tokens, chunk.start
        if tokens.ndim != 1 or not len(tokens):
            raise RequestError(f"slot {chunk.slot}: tokens have shape {tokens.shape}; it must be (t,) with t >= 1")
        ids = tokens.tolist()  # faster than NumPy's min and max for one token, as in most steps
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= vocab_size:
            token = lowest if lowest < 0 else highest
            raise RequestError(f"slot {chunk.slot}: token id {token} is outside the vocabulary, 0 to {vocab_size - 1}")
        cached = lengths.get(chunk.slot, 0)
        if not 0 <= start <= cached:
            raise RequestError(f"slot {chunk.slot}: tokens start at {start}, but the cache holds {cached} tokens")
        if not 0 <= chunk.logits <= len(tokens):
            raise RequestError(f"slot {chunk.slot}: logits is {chunk.logits}; it must be 0 to {len(tokens)}")
