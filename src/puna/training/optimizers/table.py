"""`OPTIMIZERS`: every optimizer by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from puna.training.optimizers.adamw import AdamW
from puna.training.optimizers.base import Optimizer
from puna.training.optimizers.muon import Muon
from puna.training.settings import TrainingSettings

OPTIMIZERS: dict[str, Callable[[Mapping[str, nn.Parameter], TrainingSettings], Optimizer]] = {
    "adamw": AdamW,
    "muon": Muon,
}
