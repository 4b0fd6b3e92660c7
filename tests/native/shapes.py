"""Configurations that the native runtime supports; some sizes do not fill registers, blocks or pages."""

from __future__ import annotations

from tests.helpers.configurations import CONFIGURATIONS

EXTRA_SHAPES = {
    "odd_widths": {"hidden_size": 40, "intermediate_size": 52, "vocab_size": 101, "num_key_value_heads": 2},
    "heads_of_100": {"head_dim": 100, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1},
    "heads_of_48": {"head_dim": 48, "vocab_size": 33},
    "heads_of_128": {"head_dim": 128, "num_key_value_heads": 2},
    "long_context": {"max_position_embeddings": 512},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}
SHAPES = {name: fields for name, fields in CONFIGURATIONS.items() if name != "linear_gelu"} | EXTRA_SHAPES
