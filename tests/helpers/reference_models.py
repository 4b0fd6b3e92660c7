"""Models of puna and of transformers with the same random weights, and how far their outputs are apart."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from puna.config import LlamaConfig
from puna.model import LlamaForCausalLM
from tests.helpers.configurations import SIZES


def their_config(config: LlamaConfig) -> transformers.LlamaConfig:
    names = [*SIZES, "num_key_value_heads", "hidden_act", "pad_token_id", "tie_word_embeddings", "attention_bias"]
    fields = {name: getattr(config, name) for name in [*names, "mlp_bias", "head_dim", "num_labels"]}
    return transformers.LlamaConfig(**fields, rope_parameters=config.rope_parameters, attn_implementation="eager")


def pair(
    config: LlamaConfig, seed: int = 0, ours: type[Any] = LlamaForCausalLM, name: str = "LlamaForCausalLM"
) -> tuple[Any, Any]:
    """Returns (ours, theirs) in evaluation mode, with the same random weights, biases and norms included."""
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
    """Returns (input_ids, attention_mask, position_ids) of texts of several lengths, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([torch.arange(max(lengths)) < length for length in lengths]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = ids.where(mask.bool(), torch.tensor(0))
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def distance(ours: Tensor, theirs: Tensor, keep: Tensor | None = None) -> float:
    """Largest difference divided by the largest absolute value, in the rows selected by `keep`."""
    if keep is not None:
        ours, theirs = ours[keep], theirs[keep]
    ours, theirs = ours.detach(), theirs.detach()
    assert ours.shape == theirs.shape
    assert torch.isfinite(ours).all()
    return float((ours - theirs).abs().max() / theirs.abs().max())
