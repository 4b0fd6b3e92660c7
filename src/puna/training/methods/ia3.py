"""IA3: factors of keys, values and the inner states of the feed-forward network (arXiv:2205.05638)."""

from __future__ import annotations

from typing import Literal

import torch

from puna.adapters import Adapter
from puna.errors import ConfigError, show
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.methods.attach import attach_scaling, trainable_parameter
from puna.training.methods.base import Method, ScalingParameters, Trainable
from puna.training.methods.targets import select_matrices, train_saved
from puna.training.settings import TrainingSettings


class Ia3(Method):
    """Multiplies the outputs of some matrices, and the inputs of the feed-forward ones."""

    name = "ia3"
    kind = "ia3"
    options = frozenset({"adapter", "layers", "modules_to_save", "targets", "exclude", "feedforward", "quantized"})

    def build(
        self,
        trainable: Trainable,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: TrainingSettings,
        start: Adapter | None,
    ) -> None:
        """Adds the factors, which are 1 at the beginning."""
        if start is not None:
            factors = {name: (torch.from_numpy(item.factors), item.side) for name, item in start.scalings.items()}
        else:
            factors = _new_factors(trainable, settings)
        for name, (values, side) in factors.items():
            parameter = trainable_parameter(trainable, f"{name.removesuffix('.weight')}.ia3_l", values)
            attach_scaling(trainable, name, ScalingParameters(parameter, side))
        train_saved(trainable, settings, start)

    def learning_rate(self, hidden: int) -> float:
        """Returns the learning rate of PEFT's examples of IA3."""
        return 8e-3


def _new_factors(
    trainable: Trainable, settings: TrainingSettings
) -> dict[str, tuple[torch.Tensor, Literal["inputs", "outputs"]]]:
    shapes = select_matrices(trainable, settings, settings.targets or ("k_proj", "v_proj", "down_proj"))
    inner = ("down_proj",) if settings.feedforward is None else settings.feedforward
    modules = {name: name.removesuffix(".weight") for name in shapes}
    for end in settings.feedforward or ():
        if not any(module.endswith(end) for module in modules.values()):
            raise ConfigError(f"feedforward has {show(end)}, which is not one of the targets; add it to targets")
    return {
        name: (torch.ones(shapes[name][1]), "inputs")
        if module.endswith(inner)
        else (torch.ones(shapes[name][0]), "outputs")
        for name, module in modules.items()
    }
