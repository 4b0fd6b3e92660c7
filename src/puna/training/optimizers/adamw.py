"""AdamW (arXiv:1711.05101), by PyTorch's operation, which needs neither `torch.optim` nor what that imports."""

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
        self._settings = settings
        self._state: dict[str, dict[str, Tensor]] = {}
        for name, value in self.parameters.items():  # before the first step, whose freed memory they would divide
            moments = {moment: torch.zeros_like(value.detach()) for moment in _MOMENTS}
            self._state[name] = {"step": torch.zeros(()), **moments}

    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Changes the parameters, using gradients times `scale`."""
        gradients = {name: item.grad for name, item in self.parameters.items() if item.grad is not None}
        if not gradients:
            return
        states = [self._state[name] for name in gradients]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adamw_(
            [self.parameters[name].detach() for name in gradients],
            list(gradients.values()),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=learning_rate,
            beta1=self._settings.beta1,
            beta2=self._settings.beta2,
            weight_decay=self._settings.weight_decay,
            eps=self._settings.epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=None if scale == 1 else torch.tensor(1 / scale),  # its divisor of gradients
        )

    def state(self) -> dict[str, Tensor]:
        """Returns the moments and the number of steps of each parameter that has changed."""
        states = {name: state for name, state in self._state.items() if state["step"] > 0}
        return {f"{moment}.{name}": value for name, state in states.items() for moment, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the moments exactly."""
        for name in self.parameters:
            if f"step.{name}" in state:
                self._state[name] = {moment: state[f"{moment}.{name}"].clone() for moment in ("step", *_MOMENTS)}
