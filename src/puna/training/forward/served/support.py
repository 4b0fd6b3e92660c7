"""What `ServedForward` does not implement."""

from __future__ import annotations

from puna.training.forward.fused.support import unsupported
from puna.training.methods.base import Trainable

_MISSING = {
    "dropout": "dropout",
    "weights": "training of the model's own weights",
    "prompt": "soft prompts",
    "prefix": "prefixes",
    "bottlenecks": "bottleneck adapters",
    "token_rows": "rows of single tokens",
}


def unserved(trainable: Trainable, noise: float) -> str | None:
    """Returns what the served forward pass lacks for a model and a method, in words; None if it lacks nothing."""
    for feature in sorted(trainable.features & _MISSING.keys()):
        return _MISSING[feature]
    if noise:
        return "the noise of neftune_alpha"
    if trainable.base is None:
        return "a model that is not in a file"
    return unsupported(trainable)
