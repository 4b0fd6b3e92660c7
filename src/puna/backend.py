"""The interface between the engine and an execution backend: `Batch` in, float32 logits out.

A backend owns the weights and the memory of the key-value cache, which is divided into pages of 64 tokens. The engine
chooses the pages of each sequence, so a backend knows nothing about sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig
from puna.errors import RequestError

PAGE = 64
"""Number of tokens in a page of the cache."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence: part of a prompt, or a generated token and guesses of the tokens after it.

    Attributes:
        pages: numbers of the pages of the sequence, in order; page i holds the positions from i * PAGE on. They must
            hold the keys and values of all positions before `start`, and have space for the chunk's tokens.
        tokens: ids, int64, shape (t,), t >= 1.
        start: position of the first token. The pages may hold later positions from an interrupted step or from wrong
            guesses: the chunk replaces them.
        logits: number of final tokens whose logits are returned, 0 to t.
    """

    pages: tuple[int, ...]
    tokens: NDArray[np.int64]
    start: int
    logits: int = 1


Batch = Sequence[Chunk]
"""A ragged batch: chunks of any lengths. No two chunks may write to the same page."""


class Backend(Protocol):
    """Runs the forward pass of a batch."""

    name: str
    config: LlamaConfig
    pages: int
    """Number of pages of the cache; they are numbered from 0. Memory is allocated when a page is first used."""

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        """Writes the batch's keys and values; returns logits of shape (sum of the chunks' `logits`, vocab_size).

        Rows are in the order of the chunks, and of the tokens in each chunk.
        """
        ...

    def close(self) -> None:
        """Frees the weights and the cache; `forward` is then an error. A second call does nothing."""
        ...


def page_count(tokens: int) -> int:
    """Returns the number of pages that `tokens` tokens need."""
    return -(-tokens // PAGE)


def consecutive_pages(tokens: int, sequence: int = 0) -> tuple[int, ...]:
    """Returns pages for `tokens` tokens; sequences 0, 1, ... of equal length get different pages."""
    count = page_count(tokens)
    return tuple(range(sequence * count, (sequence + 1) * count))


def check_batch(batch: Batch, vocab_size: int, pages: int) -> None:
    """Checks a batch before it runs, on a cache of `pages` pages.

    Raises:
        RequestError: if a chunk has an id outside the vocabulary or too few pages, a page does not exist, or two chunks
            write to the same page.
    """
    writers: dict[int, int] = {}
    for index, chunk in enumerate(batch):
        tokens, start, end = chunk.tokens, chunk.start, chunk.start + len(chunk.tokens)
        if tokens.ndim != 1 or not len(tokens):
            raise RequestError(f"chunk {index}: tokens have shape {tokens.shape}; it must be (t,) with t >= 1")
        ids = tokens.tolist()  # faster than NumPy's min and max for one token, as in most steps
        lowest, highest = min(ids), max(ids)
        if lowest < 0 or highest >= vocab_size:
            token = lowest if lowest < 0 else highest
            raise RequestError(f"chunk {index}: token id {token} is outside the vocabulary, 0 to {vocab_size - 1}")
        if start < 0 or end > len(chunk.pages) * PAGE:
            raise RequestError(
                f"chunk {index}: positions {start} to {end - 1} are outside its {len(chunk.pages)} pages of {PAGE} "
                "tokens"
            )
        if not 0 <= min(chunk.pages) <= max(chunk.pages) < pages:
            raise RequestError(f"chunk {index}: pages are {chunk.pages}; the cache has pages 0 to {pages - 1}")
        for page in chunk.pages[start // PAGE : page_count(end)]:
            if writers.setdefault(page, index) != index:
                raise RequestError(f"chunks {writers[page]} and {index} write to page {page}; a page has one writer")
        if not 0 <= chunk.logits <= len(tokens):
            raise RequestError(f"chunk {index}: logits is {chunk.logits}; it must be 0 to {len(tokens)}")
