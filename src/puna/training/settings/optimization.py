"""Options of the optimizer: learning rate, schedule, clipping, and the detection of failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puna.training.settings.option import option


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """The optimizer, its learning rate over time, and the detection of failures."""

    optimizer: str = option("adamw", "algorithm: adamw or muon")
    learning_rate: float | Literal["auto"] = option(
        "auto", "the highest rate of the schedule; auto computes it from the method and the hidden size", above=0
    )
    schedule: Literal["linear", "cosine", "wsd", "constant"] = option(
        "linear", "learning rate after the warm-up; wsd is constant until the last decay_share, which falls linearly"
    )
    warmup: float = option(0.0, "steps of linear warm-up; a value below 1 is a share of all steps", at_least=0)
    decay_share: float = option(0.2, "share of all steps in which wsd lowers the rate", at_least=0, at_most=1)
    final_rate: float = option(0.0, "rate at the end, as a share of the highest rate", at_least=0, at_most=1)
    weight_decay: float = option(0.0, "decoupled weight decay", at_least=0)
    beta1: float = option(0.9, "decay of the first moment", at_least=0, below=1)
    beta2: float = option(0.999, "decay of the second moment", at_least=0, below=1)
    epsilon: float = option(1e-8, "added to the square root of the second moment", above=0)
    momentum: float = option(0.95, "momentum of Muon", at_least=0, below=1)
    max_gradient_norm: float = option(1.0, "gradients of a larger norm are scaled down to it; 0: never", at_least=0)
    spike_threshold: float = option(
        6.0, "stop if the loss or the gradient norm exceeds its moving mean by this number of deviations; 0: never",
        at_least=0,
    )  # fmt: skip
