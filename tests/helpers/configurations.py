"""Small model configurations that cover the variations of LLaMA: heads, biases, tied weights, rope types."""

from __future__ import annotations

from typing import Any

from puna.config import LlamaConfig

SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # large weights make errors visible
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.5}


def longrope(head_dim: int, original: int = 64, **more: Any) -> dict[str, Any]:
    """Returns LongRoPE settings for heads of width `head_dim`."""
    pairs = head_dim // 2
    return {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.05 * i for i in range(pairs)],
        "long_factor": [1.5 + 0.4 * i for i in range(pairs)],
        "original_max_position_embeddings": original,
        "factor": 4.0,
        **more,
    }


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa2": {"num_key_value_heads": 2, "rope_theta": 500000.0},
    "gqa4": {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64},
    "mqa_tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True, "rope_theta": 1e6},
    "all_biases_tied": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
    },
    "wide_heads": {"head_dim": 20, "num_key_value_heads": 2},
    "linear_gelu": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "hidden_act": "gelu_new"},
    "dynamic_mqa": {"rope_scaling": DYNAMIC, "num_key_value_heads": 1},
    "yarn_narrow_heads": {"rope_scaling": YARN, "head_dim": 8, "num_key_value_heads": 2},
    "llama3_padding_id": {"rope_scaling": LLAMA3, "pad_token_id": 0, "num_key_value_heads": 2},
    "longrope_gqa4": {"rope_scaling": longrope(16), "head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 2},
}


def config_of(**fields: Any) -> LlamaConfig:
    """Returns a small configuration with some fields changed."""
    return LlamaConfig(**{**SIZES, **fields})
