"""The limits that memory bandwidth and arithmetic set to a workload."""

from __future__ import annotations

from dataclasses import dataclass

from puna.benchmark.timing import Work
from puna.config import LlamaConfig
from puna.native import NativeBackend
from puna.native.measure import MachineSpeed

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
