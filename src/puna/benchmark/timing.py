"""Workloads and their speed on this machine. Calls `Backend.forward` directly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Chunk, consecutive_pages, page_count
from puna.config import LlamaConfig
from puna.native import NativeBackend

CHUNK_TOKENS = 512
"""Maximum number of prompt tokens per forward pass, as in the engine."""


@dataclass(frozen=True)
class Work:
    """A workload to time.

    Attributes:
        phase: "prefill": reading `tokens` tokens; "decode": generating `tokens` tokens for each of `batch` sequences
            whose caches hold `context` tokens.
    """

    phase: Literal["prefill", "decode"]
    tokens: int
    context: int
    batch: int


@dataclass(frozen=True)
class Result:
    """The speed of a workload: tokens per second in each repetition, and their median as a fraction of the limit."""

    work: Work
    samples: tuple[float, ...]
    limit_fraction: float | None

    @property
    def tokens_per_second(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)


def plan(
    config: LlamaConfig,
    pages: int,
    prefill: Sequence[int],
    decode: int,
    context: Sequence[int],
    batch: Sequence[int],
) -> tuple[list[Work], dict[Work, str]]:
    """Returns (workloads that can run, the other workloads with the reason why each cannot run).

    Args:
        pages: number of pages of the cache, which all sequences share.
    """
    works = [Work("prefill", tokens, 0, 1) for tokens in prefill]
    works += [Work("decode", decode, length, sequences) for length in context for sequences in batch]
    reasons = {}
    for work in works:
        length = work.context + work.tokens
        needed = work.batch * page_count(length)
        if length > config.context_length:
            reasons[work] = f"exceeds the model's context of {config.context_length} tokens"
        elif needed > pages:
            reasons[work] = f"needs a cache of {needed * PAGE} tokens, but memory is enough for {pages * PAGE}"
    return [work for work in works if work not in reasons], reasons


def run(backend: NativeBackend, works: Sequence[Work], repeat: int) -> Iterator[tuple[Work, float]]:
    """Times all workloads in turn, `repeat` times; yields each workload and its tokens per second."""
    random = np.random.default_rng(0)
    ids = random.integers(0, backend.config.vocab_size, backend.config.context_length)
    read(backend, ids[: min(64, len(ids))])  # warm-up
    for _ in range(repeat):
        for work in works:
            yield work, time_work(backend, ids, work)


def time_work(backend: NativeBackend, ids: NDArray[np.int64], work: Work) -> float:
    """Runs a workload once, on the first tokens of `ids`, and returns its tokens per second."""
    time_phase = _time_prefill if work.phase == "prefill" else _time_decode
    return time_phase(backend, ids, work)


def read(backend: NativeBackend, ids: NDArray[np.int64], pages: tuple[int, ...] | None = None) -> None:
    """Runs the model on `ids`, which fills the pages; computes logits only for the last token.

    Without `pages`, the first pages of the cache are used.
    """
    pages = consecutive_pages(len(ids)) if pages is None else pages
    for start in range(0, len(ids), CHUNK_TOKENS):
        tokens = ids[start : start + CHUNK_TOKENS]
        backend.forward([Chunk(pages, tokens, start, int(start + len(tokens) == len(ids)))])


def step(backend: NativeBackend, ids: NDArray[np.int64], position: int, sequences: Sequence[tuple[int, ...]]) -> None:
    """Decodes one token of each sequence, including the choice of the most likely next token.

    Args:
        sequences: the pages of each sequence.
    """
    chunks = [Chunk(pages, ids[position : position + 1], position) for pages in sequences]
    backend.forward(chunks).logits.argmax(axis=-1)


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _time_prefill(backend: NativeBackend, ids: NDArray[np.int64], work: Work) -> float:
    return work.tokens / _seconds(lambda: read(backend, ids[: work.tokens]))


def _time_decode(backend: NativeBackend, ids: NDArray[np.int64], work: Work) -> float:
    sequences = [consecutive_pages(work.context + work.tokens, number) for number in range(work.batch)]
    for pages in sequences:
        read(backend, ids[: work.context], pages)

    def decode() -> None:
        for index in range(work.tokens):
            step(backend, ids, work.context + index, sequences)

    return work.tokens * work.batch / _seconds(decode)
