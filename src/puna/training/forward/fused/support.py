"""What `FusedForward` does not implement."""

from __future__ import annotations

import re

from puna.training.forward.rows import decoder_of
from puna.training.methods.base import Trainable

_MATRIX = re.compile(r"(model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight")
_MISSING = {"prefix": "prefixes", "bottlenecks": "bottleneck adapters", "token_rows": "rows of single tokens"}


def unsupported(trainable: Trainable) -> str | None:
    """Returns what the fused forward pass lacks for a model and a method, in words; None if it lacks nothing."""
    for feature in sorted(trainable.features & _MISSING.keys()):
        return _MISSING[feature]
    return _of_model(trainable) or _of_changes(trainable)


def _of_model(trainable: Trainable) -> str | None:
    config, decoder = trainable.model.config, decoder_of(trainable)
    if trainable.model.device.type != "cpu":
        return f"the device {trainable.model.device}"
    if config.hidden_act not in ("silu", "swish"):
        return f"the activation {config.hidden_act}"
    if decoder.rotary_emb.by_length:
        return "rotary frequencies that depend on the length"
    if config.attention_dropout:
        return "dropout of attention weights"
    if any(name.endswith("kv_heads") for name, _ in decoder.named_buffers()):
        return "pruned heads"
    return None


def _of_changes(trainable: Trainable) -> str | None:
    model = trainable.model
    for name in (*trainable.low_rank, *trainable.scalings):
        if not _MATRIX.fullmatch(name):
            return f"changes of {name}"
    biased = any(name.endswith(".bias") for name, _ in model.named_parameters())
    if any(name.endswith(".bias") and parameter.requires_grad for name, parameter in model.named_parameters()):
        return "training of biases"
    for change in trainable.low_rank.values():
        if change.magnitude is not None and (change.dropout or biased):
            return "DoRA with dropout or biases"
    for name, scaling in trainable.scalings.items():
        if scaling.side == "inputs" and not name.endswith(("o_proj.weight", "down_proj.weight")):
            return f"scaled inputs of {name}"
    return None
