"""Chooses the implementation of the forward pass."""

from __future__ import annotations

from puna.errors import ConfigError
from puna.training.forward.base import Forward
from puna.training.forward.fused.model import FusedForward
from puna.training.forward.fused.support import unsupported
from puna.training.forward.reference import ReferenceForward
from puna.training.forward.served.model import ServedForward
from puna.training.memory import keep_memory
from puna.training.methods.base import Trainable


def forward_for(
    trainable: Trainable, implementation: str = "auto", checkpointing: bool = False, noise: float = 0.0
) -> Forward:
    """Returns the forward pass for a model and a method, and calls `keep_memory`.

    Args:
        implementation: "fused", "reference", "served", or "auto": fused where it implements the model and the method.
            The attribute `name` of the result says which it is, and why.
        checkpointing: recompute the activations of each layer in the backward pass.
        noise: NEFTune's alpha; 0 for no noise.

    Raises:
        ConfigError: "fused" or "served" is requested, but does not implement the model or the method.
    """
    keep_memory()
    if implementation == "reference":
        return ReferenceForward(trainable, checkpointing, noise)
    if implementation == "served":
        return ServedForward(trainable, noise)
    missing = unsupported(trainable)
    if missing is None:
        return FusedForward(trainable, checkpointing, noise)
    if implementation == "fused":
        raise ConfigError(f"forward is 'fused', which does not implement {missing}; set forward to 'auto'")
    reference = ReferenceForward(trainable, checkpointing, noise)
    reference.name = f"reference, since fused does not implement {missing}"
    return reference
