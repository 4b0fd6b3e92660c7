"""`Step` and `Trace`: the inputs of a forward pass that all layers share, and the results that it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from puna.model.attention import AttentionMask
from puna.model.pytree import move
from puna.model.rope import Rope


@dataclass(frozen=True)
class Trace:
    """Which intermediate results a forward pass returns in addition to the last hidden states."""

    states: bool = False  # the input of each layer
    weights: bool = False  # the attention weights of each layer; `Step.eager` must be set
    cache: bool = False  # keys and values


NO_TRACE = Trace()


@dataclass(frozen=True)
class Step:
    """The inputs of a forward pass that all layers share, and the results to return."""

    rope: Rope
    mask: AttentionMask
    trace: Trace = NO_TRACE
    eager: bool = False  # use the eager implementation of attention, which returns its weights

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Step:
        """Returns the step on another device; accelerate calls this method if layers are on several devices."""
        step: Step = move(self, torch.device(device), non_blocking)
        return step
