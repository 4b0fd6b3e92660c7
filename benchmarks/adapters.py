"""Measures decoding with a LoRA adapter on all matrices, compared with decoding without one.

    python benchmarks/adapters.py [--model PATH] [--sequences 1 16] [--rank 16] [--repeat 50]

Groups of steps with and without the adapter alternate, so that other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import cast

import numpy as np

from puna import LLM
from puna.backend import Chunk, LowRank, consecutive_pages
from puna.native import NativeBackend

START = 200
"""Number of tokens of each sequence before the measurement."""

STEPS = 8
"""Number of consecutive steps with or without the adapter."""


def random_lora(backend: NativeBackend, rank: int) -> dict[str, LowRank]:
    """Returns random changes of all projections."""
    config, random = backend.config, np.random.default_rng(0)
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    shapes = {
        "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip

    def factor(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), np.float32) * np.float32(0.01)

    return {
        f"model.layers.{layer}.{name}.weight": LowRank(factor(rank, columns), factor(rows, rank))
        for layer in range(config.num_hidden_layers)
        for name, (rows, columns) in shapes.items()
    }


def measure(backend: NativeBackend, adapter: int, sequences: int, repeat: int) -> None:
    """Prints the times of steps with and without the adapter, and the median of their ratios."""
    tables = [consecutive_pages(START + 1, number) for number in range(sequences)]
    ids = np.arange(START) + 10
    for table in tables:
        backend.forward([Chunk(table, ids, 0, 0)])
    times: dict[int, list[float]] = {0: [], adapter: []}
    for turn in range(repeat + 1):
        for number, seconds in times.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                backend.forward([Chunk(table, ids[:1], START, adapter=number) for table in tables])
            seconds += [(time.perf_counter() - started) / STEPS] if turn else []  # the first turn warms up
    without, with_ = times.values()
    ratio = statistics.median(a / b for a, b in zip(without, with_, strict=True))
    medians = [f"{statistics.median(values) * 1e3:.2f} ms" for values in (without, with_)]
    print(f"{sequences} sequences: {medians[0]} without, {medians[1]} with adapter; {ratio:.3f} of the speed")


def main() -> None:
    """Measures each number of sequences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="Model to run; default: puna's default model.")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16], help="Sequences that decode at once.")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=50, help="Measured groups of steps of each kind.")
    arguments = parser.parse_args()
    backend = cast(NativeBackend, LLM(arguments.model, "native", max_batch=max(arguments.sequences))._backend)
    adapter = backend.load_adapter(random_lora(backend, arguments.rank))
    for sequences in arguments.sequences:
        measure(backend, adapter, sequences, arguments.repeat)


if __name__ == "__main__":
    main()
