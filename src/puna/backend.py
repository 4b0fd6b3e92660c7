"""What the engine asks of an execution backend: `Batch` in, float32 logits out. No policy, no tensors of a framework.

A backend owns weights and key-value caches. The engine names a cache by a small integer, the *slot*; what stands behind
it (a contiguous cache, pages) is the backend's affair.
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
    """Consecutive tokens of one sequence in a batch: a piece of a prompt, or a single token to decode.

    Attributes:
        slot: which cache the tokens extend.
        tokens: ids, int64, shape (t,), t >= 1.
        start: position of the first token. The cache of `slot` holds the positions before it; what it holds from there
            on (a step that was interrupted) is dropped.
        logits: how many of the last tokens want logits, 0 .. t.
    """

    slot: int
    tokens: NDArray[np.int64]
    start: int
    logits: int = 1


PAGE = 64
"""Tokens in a page of a cache."""

Batch = Sequence[Chunk]
"""A ragged batch: any mix of prompt chunks and single tokens, each slot at most once."""


class Backend(Protocol):
    """Runs the forward pass of a batch."""

    name: str
    config: LlamaConfig
    cache_tokens: int | None
    """Tokens that all caches together can hold, each cache in whole pages of `PAGE`; None where nothing limits them."""

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Extends the caches by the batch's tokens; returns logits, (sum of `logits` over chunks, vocab_size).

        Rows follow the order of the chunks, and of the tokens inside each.
        """
        ...

    def free(self, slot: int) -> None:
        """Forgets the cache of `slot`, so that the slot can serve another sequence."""
        ...


def check_batch(batch: Batch, vocab_size: int, held: Mapping[int, int]) -> None:
    """Checks a batch before anything runs; `held` says how many positions each slot's cache holds.

    Raises:
        RequestError: when a slot appears twice, or a chunk starts beyond its cache or holds an impossible id.
    """
    slots = [chunk.slot for chunk in batch]
    if len(set(slots)) < len(slots):
        raise RequestError(f"the batch names slots {slots}; each may appear once")
    for chunk in batch:
        tokens, start = chunk.tokens, chunk.start
        if tokens.ndim != 1 or not len(tokens):
            raise RequestError(f"slot {chunk.slot}: tokens have shape {tokens.shape}; (t,) with 1 or more is needed")
        ids = tokens.tolist()  # NumPy's minimum takes longer for the one token of a step
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= vocab_size:
            bad = lowest if lowest < 0 else highest
            raise RequestError(f"slot {chunk.slot}: token id {bad} is outside the vocabulary, 0 to {vocab_size - 1}")
        if not 0 <= start <= held.get(chunk.slot, 0):
            cached = held.get(chunk.slot, 0)
            raise RequestError(f"slot {chunk.slot}: tokens start at {start}, but the cache holds {cached}")
        if not 0 <= chunk.logits <= len(tokens):
            raise RequestError(f"slot {chunk.slot}: logits of {chunk.logits} tokens were asked, of {len(tokens)}")
