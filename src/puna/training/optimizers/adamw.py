"""AdamW (arXiv:1711.05101), by PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from puna.training.optimizers.base import Optimizer
from puna.training.settings import TrainingSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW(Optimizer):
    """AdamW with decoupled weight decay of all parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> None:
        self.parameters = dict(parameters)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(),
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Changes the parameters, using gradients times `scale`."""
        if scale != 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Returns the moments and the number of steps of each parameter."""
        values = self._optimizer.state
        return {
            f"{moment}.{name}": values[parameter][moment]
            for name, parameter in self.parameters.items()
            if parameter in values
            for moment in ("step", *_MOMENTS)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the moments exactly."""
        for name, parameter in self.parameters.items():
            if f"step.{name}" in state:
                self._optimizer.state[parameter] = {
                    moment: state[f"{moment}.{name}"].clone() for moment in ("step", *_MOMENTS)
                }
