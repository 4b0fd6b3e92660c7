"""Speed of a model on this machine, compared with the machine's limits. Calls `Backend.forward` directly.

The limits: each decoding step reads all packed weights and the caches once, so memory bandwidth limits its speed, or
the processor's peak rate if many sequences share the step; reading a prompt takes a known number of
multiply-accumulates, so the peak rate limits its speed.
"""

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
from puna.native.measure import MachineSpeed

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


MIN_WEIGHT_BYTES = 64_000_000
"""Smaller models may fit in the processor's cache, whose bandwidth is not measured, so their limit is not known."""


@dataclass(frozen=True)
class Demand:
    """Bytes that are read from memory and arithmetic operations, both per token of a workload."""

    bytes: float
    operations: float

    def limit(self, bytes_per_second: float, operations_per_second: float) -> float:
        """Returns the maximum tokens per second: the roofline of a machine with these speeds."""
        return 1 / max(self.bytes / bytes_per_second, self.operations / operations_per_second)


def demand(backend: NativeBackend, work: Work) -> Demand | None:
    """Returns the demand of a workload; None for decoding if the weights may fit in the processor's cache.

    Decoding reads the weights once per step, and multiplies them by the tokens of all sequences. The bytes of prefill
    are not counted, because arithmetic takes much longer.
    """
    if work.phase == "prefill":
        return Demand(0, 2 * products(backend.config, work.tokens) / work.tokens)
    if backend.weight_bytes < MIN_WEIGHT_BYTES:
        return None
    context, config = work.context + work.tokens / 2, backend.config
    attention = 2 * config.num_attention_heads * config.head_dim * context * config.num_hidden_layers
    return Demand(
        backend.weight_bytes / work.batch + backend.cache_bytes_per_token * context,
        2 * (_matrix_products(config) + attention + config.hidden_size * config.vocab_size),
    )


def limit(backend: NativeBackend, machine: MachineSpeed, work: Work) -> float | None:
    """Returns the maximum tokens per second that memory bandwidth and arithmetic allow; None if it is not known."""
    needed = demand(backend, work)
    peak = machine.int8_gops if backend.integer_weights else machine.bf16_gflops
    return None if needed is None else needed.limit(machine.dram_gb_s * 1e9, peak * 1e9)


def phase_limits(backend: NativeBackend, machine: MachineSpeed, work: Work) -> dict[str, float]:
    """Returns the minimum seconds that a workload takes in each phase of the forward pass whose limit is known.

    Decoding reads a phase's matrices, or the caches, once per step; prefill multiplies the matrices by every token.
    """
    tokens = work.tokens
    if work.phase == "decode":
        if backend.weight_bytes < MIN_WEIGHT_BYTES:
            return {}
        amounts = dict(backend.phase_bytes)
        amounts["attention"] = round(work.batch * backend.cache_bytes_per_token * (work.context + tokens / 2))
        return {phase: tokens * amount / (machine.dram_gb_s * 1e9) for phase, amount in amounts.items() if amount}
    peak = (machine.int8_gops if backend.integer_weights else machine.bf16_gflops) * 1e9
    config = backend.config
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    products_per_token = {
        "qkv": config.hidden_size * (heads + 2 * kv_heads),
        "o": config.hidden_size * heads,
        "gate_up": 2 * config.hidden_size * config.intermediate_size,
        "down": config.hidden_size * config.intermediate_size,
    }
    return {phase: 2 * config.num_hidden_layers * tokens * count / peak for phase, count in products_per_token.items()}


def products(config: LlamaConfig, tokens: int) -> float:
    """Returns the multiply-accumulates needed to read a prompt: linear layers, causal attention, one token's logits."""
    attention = 2 * config.num_attention_heads * config.head_dim * (tokens + 1) / 2 * config.num_hidden_layers
    return tokens * (_matrix_products(config) + attention) + config.hidden_size * config.vocab_size


def _matrix_products(config: LlamaConfig) -> int:
    """Returns the multiply-accumulates of a token in the matrices of all layers."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return config.num_hidden_layers * (hidden * (2 * heads + 2 * kv_heads) + 3 * hidden * inner)
