"""Shapes of the compared models. All engines' environments import this module, so it uses only the standard library."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaMA model, named as in its configuration."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def int4_group(self) -> int:
        """Weights per scale in OpenVINO's int4: 128 (its default), 64 or 32, the largest that divides every row."""
        sizes = (self.hidden_size, self.intermediate_size)
        return next(group for group in (128, 64, 32) if not any(size % group for size in sizes))


SHAPES = {
    "15m": Shape(288, 6, 6, 6, 768, 32000),
    "smollm2": Shape(576, 30, 9, 3, 1536, 49152, 8192, 100000.0, 1e-5, True),
    "1.1b": Shape(2048, 22, 32, 4, 5632, 32000),
    "7b": Shape(4096, 32, 32, 32, 11008, 32000),
}


def layer_rows(shape: Shape) -> dict[str, tuple[int, int]]:
    """Returns (rows, columns) of each matrix of a layer, by Hugging Face name."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv_rows = shape.num_key_value_heads * shape.head_dim
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""GGUF names of the tensors of a layer, by Hugging Face name."""
