"""Chooses the implementation of the forward pass."""

from __future__ import annotations

from puna.errors import ConfigError
from puna.training.forward.base import Forward
from puna.training.forward.fused.frozen import ActivationCache, lowest_trained
from puna.training.forward.fused.model import FusedForward
from puna.training.forward.fused.support import unsupported
from puna.training.forward.reference import ReferenceForward
from puna.training.forward.served.model import ServedForward
from puna.training.memory import keep_memory
from puna.training.methods.base import Trainable


def forward_for(
    trainable: Trainable,
    implementation: str = "auto",
    checkpointing: bool = False,
    noise: float = 0.0,
    cache: ActivationCache | None = None,
) -> Forward:
    """Returns the forward pass for a model and a method, and calls `keep_memory`.

    Args:
        implementation: "fused", "reference", "served", or "auto": fused where it implements the model and the method.
            The attribute `name` of the result says which it is, and why.
        checkpointing: recompute the activations of each layer in the backward pass.
        noise: NEFTune's alpha; 0 for no noise.
        cache: keeps the activations of frozen layers, only with "fused".

    Raises:
        ConfigError: "fused" or "served" is requested, but does not implement the model or the method; or there is a
            cache, but the forward pass cannot use it.
    """
    keep_memory()
    missing = unsupported(trainable)
    if cache is not None:
        _check_cache(trainable, implementation, noise, missing)
    if implementation == "reference":
        return ReferenceForward(trainable, checkpointing, noise)
    if implementation == "served":
        return ServedForward(trainable, noise)
    if missing is None:
        forward = FusedForward(trainable, checkpointing, noise, cache)
        if cache is not None:
            layers = lowest_trained(trainable)
            forward.name = f"fused; the first {layers} layers are frozen and computed once for each document"
        return forward
    if implementation == "fused":
        raise ConfigError(f"forward is 'fused', which does not implement {missing}; set forward to 'auto'")
    reference = ReferenceForward(trainable, checkpointing, noise)
    reference.name = f"reference, since fused does not implement {missing}"
    return reference


def _check_cache(trainable: Trainable, implementation: str, noise: float, missing: str | None) -> None:
    reason = None
    if implementation in ("reference", "served"):
        reason = f"forward is {implementation!r}"
    elif missing is not None:
        reason = f"the fused forward pass does not implement {missing}"
    elif noise:
        reason = "neftune_alpha changes the embeddings in every epoch"
    elif lowest_trained(trainable) == 0:
        reason = "the first layer or what precedes it trains; set layers to the number of the last layers that train"
    if reason is not None:
        raise ConfigError(f"activation_cache is set, but {reason}; omit activation_cache, or change that")
