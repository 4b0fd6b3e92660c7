"""`Optimizer`: changes trainable parameters by their gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from puna.native import training as native


class Optimizer(ABC):
    """An optimizer of named float32 parameters, which reads their `.grad`.

    A new optimizer is a file with a subclass, and a row in the table `OPTIMIZERS`. Constructors have the arguments
    (parameters, settings).
    """

    parameters: Mapping[str, nn.Parameter]

    @property
    def step_bytes(self) -> int:
        """Bytes that a step needs at most, besides parameters, gradients and state, which exists before the first."""
        return 0

    @abstractmethod
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Changes the parameters, using gradients times `scale` (clipping)."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Returns the optimizer's state by name, such as "exp_avg.NAME"; the loop saves it with the parameters."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state exactly."""

    def gradient_norm(self) -> float:
        """Returns the Euclidean norm of all gradients, summed in float64."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if native.is_available() and all(item.is_contiguous() and item.dtype == torch.float32 for item in gradients):
            return math.sqrt(
                native.sum_of_squares([(item, item.numel()) for item in gradients], torch.get_num_threads())
            )
        norms = torch._foreach_norm(gradients, 2, torch.float64) if gradients else ()
        return math.hypot(*map(float, norms))

    def zero_gradients(self) -> None:
        """Removes all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None
