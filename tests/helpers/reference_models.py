"""Models of puna and of transformers with the same random weights, and the distance between their outputs."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from puna.config import LlamaConfig
from puna.model import LlamaForCausalLM
from tests.helpers.configurations import SIZES


def transformers_config(config: LlamaConfig) -> transformers.LlamaConfig:
    """Returns the same configuration as an object of transformers."""
    names = [*SIZES, "num_key_value_heads", "hidden_act", "pad_token_id", "tie_word_embeddings", "attention_bias"]
    fields = {name: getattr(config, name) for name in [*names, "mlp_bias", "head_dim", "num_labels"]}
    return transformers.LlamaConfig(**fields, rope_parameters=config.rope_parameters, attn_implementation="eager")


def pair(
    config: LlamaConfig, seed: int = 0, model_class: type[Any] = LlamaForCausalLM, name: str = "LlamaForCausalLM"
) -> tuple[Any, Any]:
    """Returns a model of puna and its counterpart in transformers, with equal random weights, in evaluation mode."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    reference = getattr(transformers, name)(transformers_config(config)).eval()
    missing, extra = reference.load_state_dict(model.state_dict(), strict=True)
    assert not missing and not extra
    return model, reference


def ragged(config: LlamaConfig, lengths: tuple[int, ...], side: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (input_ids, attention_mask, position_ids) of texts of several lengths, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([torch.arange(max(lengths)) < length for length in lengths]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = ids.where(mask.bool(), torch.tensor(0))
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def distance(result: Tensor, expected: Tensor, keep: Tensor | None = None) -> float:
    """Returns the largest difference over the largest expected absolute value, in the rows selected by `keep`."""
    if keep is not None:
        result, expected = result[keep], expected[keep]
    result, expected = result.detach(), expected.detach()
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()
    return float((result - expected).abs().max() / expected.abs().max())
