"""Pairs of models with the same weights: puna's and transformers', and the 12 small configurations they meet in."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from puna.config import LlamaConfig
from puna.model import LlamaForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # large, so that differences show
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
    return LlamaConfig(**{**SIZES, **fields})


def their_config(config: LlamaConfig) -> transformers.LlamaConfig:
    names = [*SIZES, "num_key_value_heads", "hidden_act", "pad_token_id", "tie_word_embeddings", "attention_bias"]
    fields = {name: getattr(config, name) for name in [*names, "mlp_bias", "head_dim", "num_labels"]}
    return transformers.LlamaConfig(**fields, rope_parameters=config.rope_parameters, attn_implementation="eager")


def pair(
    config: LlamaConfig, seed: int = 0, ours: type[Any] = LlamaForCausalLM, name: str = "LlamaForCausalLM"
) -> tuple[Any, Any]:
    """(ours, theirs): the same random weights, biases and norms included, in evaluation mode."""
    torch.manual_seed(seed)
    mine = ours(config).eval()
    with torch.no_grad():
        for key, parameter in mine.named_parameters():
            if key.endswith("bias") or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs = getattr(transformers, name)(their_config(config)).eval()
    missing, extra = theirs.load_state_dict(mine.state_dict(), strict=True)
    assert not missing and not extra
    return mine, theirs


def ragged(config: LlamaConfig, lengths: tuple[int, ...], side: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids, attention_mask, position_ids) of texts of several lengths, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([torch.arange(max(lengths)) < length for length in lengths]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = ids.where(mask.bool(), torch.tensor(0))
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def distance(ours: Tensor, theirs: Tensor, keep: Tensor | None = None) -> float:
    """Largest difference over the largest absolute value, on the kept rows."""
    if keep is not None:
        ours, theirs = ours[keep], theirs[keep]
    ours, theirs = ours.detach(), theirs.detach()
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / theirs.abs().max())
