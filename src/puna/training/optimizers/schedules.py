"""Learning rates by step: linear, cosine, wsd and constant, each after a linear warm-up.

A rate is a pure function of the step, so that a resumed run needs no state. Step 0 is the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from puna.training.settings import TrainingSettings


def _linear(progress: float, settings: TrainingSettings) -> float:
    return 1 - progress


def _cosine(progress: float, settings: TrainingSettings) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _constant(progress: float, settings: TrainingSettings) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float, TrainingSettings], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _constant,
    "constant": _constant,
}
"""By name: the share of the highest rate, from 1 to 0, after a share `progress` of the steps after the warm-up."""


def warmup_steps(settings: TrainingSettings, steps: int) -> int:
    """Returns the number of steps of the warm-up."""
    return math.ceil(settings.warmup * steps) if settings.warmup < 1 else min(int(settings.warmup), steps)


def warmup_notes(settings: TrainingSettings, steps: int) -> list[str]:
    """Returns a note if a number of steps of warm-up is not less than the number of all steps."""
    if settings.warmup < 1 or settings.warmup < steps:
        return []
    return [
        f"warning: warmup is {settings.warmup:,.0f} steps, but the run has {steps:,}, so the learning rate rises until "
        "the end; set warmup to a share of the steps, such as 0.05"
    ]


def rate_at(step: int, steps: int, settings: TrainingSettings, highest: float) -> float:
    """Returns the learning rate of a step, as transformers' schedules define it; but no step has a rate of 0.

    Args:
        step: from 0.
        steps: number of all steps.
        highest: the rate at the end of the warm-up.
    """
    warmup = warmup_steps(settings, steps)
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if settings.schedule == "wsd":
        decay = math.ceil(settings.decay_share * steps)
        start = max(warmup, steps - decay)
        share = 1.0 if step < start else 1 - (step - start) / max(1, steps - start)
    else:
        share = SCHEDULES[settings.schedule]((step - warmup) / max(1, steps - warmup), settings)
    if settings.schedule == "constant":
        return highest
    return highest * (settings.final_rate + (1 - settings.final_rate) * share)
