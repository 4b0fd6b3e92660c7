"""The division of the documents of a batch into passes of the native runtime, which never changes a bit of a result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.backend import Chunk, page_count


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a batch in one pass: of several documents, or a part of one.

    Attributes:
        first, end: of the tokens in the batch.
        chunks: the tokens by document, without outputs.
        starts: index in the batch of the first token of each chunk.
    """

    first: int
    end: int
    chunks: tuple[Chunk, ...]
    starts: tuple[int, ...]


def pieces(ids: NDArray[np.int64], lengths: tuple[int, ...], size: int, pages: int, adapter: int) -> Iterator[Piece]:
    """Yields the pieces of a batch in order, of at most `size` tokens.

    A document of more tokens has pieces of its own, which use the same pages one after another.

    Args:
        ids: (T,) tokens of all documents.
        pages: number of pages of the cache; enough for each document.
        adapter: its number in the backend.
    """
    chunks: list[Chunk] = []
    starts: list[int] = []
    begin = used = 0

    def finished(end: int) -> Iterator[Piece]:
        if chunks:
            yield Piece(starts[0], end, tuple(chunks), tuple(starts))
            chunks.clear()
            starts.clear()

    for length in lengths:
        needed = page_count(length)
        if chunks and (begin + length - starts[0] > size or used + needed > pages):
            yield from finished(begin)
        used = used if chunks else 0
        for start in range(0, length, size):
            yield from finished(begin + start) if start else ()
            tokens = ids[begin + start : begin + min(start + size, length)]
            chunks.append(Chunk(tuple(range(used, used + needed)), tokens, start, 0, adapter=adapter))
            starts.append(begin + start)
        used, begin = used + needed, begin + length
    yield from finished(begin)
