"""Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024) for matrices of layers, and AdamW for all else.

The momentum of a matrix is replaced by a nearly orthogonal matrix of the same row and column space. Steps have the root
mean square of AdamW's (Liu et al., arXiv:2502.16982), so that both optimizers use one learning rate.

Legend: N matrices of equal shape, R rows, C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from puna.training.optimizers.adamw import AdamW
from puna.training.optimizers.base import Optimizer
from puna.training.settings import TrainingSettings

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial of the Newton-Schulz iteration: the largest slope at 0 (the same source)."""

_ITERATIONS = 5

_EPSILON = 1e-7

_RMS = 0.2
"""Root mean square of AdamW's usual steps, in learning rates (arXiv:2502.16982)."""

_BUFFER = "momentum_buffer."

_PART_VALUES = 1 << 22
"""Values of the matrices that are orthogonalised together, unless one has more: 16 MB in float32."""

_COPIES = 5
"""Tensors of the size of these matrices that exist at the same time, at most."""


class Muon(Optimizer):
    """Muon for the matrices of the layers; AdamW for embeddings, heads, norms and other parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: TrainingSettings) -> None:
        self.parameters = dict(parameters)
        self._momentum, self._decay = settings.momentum, settings.weight_decay
        self._matrices = {name: item for name, item in parameters.items() if item.dim() == 2 and ".layers." in name}
        others = {name: item for name, item in parameters.items() if name not in self._matrices}
        self._others = AdamW(others, settings) if others else None
        self._buffers = {name: torch.zeros_like(item.detach()) for name, item in self._matrices.items()}

    @property
    def step_bytes(self) -> int:
        """The memory of the matrices that are orthogonalised together, with intermediate results."""
        largest = max((item.nbytes for item in self._matrices.values()), default=0)
        total = sum(item.nbytes for item in self._matrices.values())
        return _COPIES * max(largest, min(4 * _PART_VALUES, total))

    @torch.no_grad()
    def step(self, learning_rate: float, scale: float = 1.0) -> None:
        """Changes the parameters, using gradients times `scale`."""
        by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name, parameter in self._matrices.items():
            if parameter.grad is not None:
                by_shape[tuple(parameter.shape)].append(name)
        for shape, names in by_shape.items():
            rate = learning_rate * _RMS * math.sqrt(max(shape))
            count = max(1, _PART_VALUES // math.prod(shape))
            for start in range(0, len(names), count):
                part = names[start : start + count]
                for name, direction in zip(part, orthogonalize(self._directions(part, scale)), strict=True):
                    self._matrices[name].mul_(1 - learning_rate * self._decay).add_(direction, alpha=-rate)
        if self._others is not None:
            self._others.step(learning_rate, scale)

    def _directions(self, names: list[str], scale: float) -> Tensor:
        """Updates the moving means of the gradients of matrices; returns Nesterov's directions, (N, R, C)."""
        first = self._matrices[names[0]]
        directions = first.new_empty(len(names), *first.shape)
        for name, direction in zip(names, directions, strict=True):
            gradient, buffer = self._matrices[name].grad, self._buffers[name]
            assert gradient is not None
            torch.mul(gradient, scale, out=direction)
            buffer.lerp_(direction, 1 - self._momentum)
            direction.lerp_(buffer, self._momentum)
        return directions

    def state(self) -> dict[str, Tensor]:
        """Returns the momentum of each matrix, and AdamW's state."""
        others = {} if self._others is None else self._others.state()
        return {f"{_BUFFER}{name}": buffer for name, buffer in self._buffers.items()} | others

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state exactly; the momentum of a matrix that it lacks is 0."""
        for name, buffer in self._buffers.items():
            saved = state.get(f"{_BUFFER}{name}")
            self._buffers[name] = torch.zeros_like(buffer) if saved is None else saved.clone()
        if self._others is not None:
            self._others.load_state({name: item for name, item in state.items() if not name.startswith(_BUFFER)})


def orthogonalize(x: Tensor) -> Tensor:
    """Returns matrices near U V^T for matrices with the singular value decomposition U S V^T.

    Their singular values are between 0.7 and 1.2, as good as 1 for the optimizer. Computed in float32.

    Args:
        x: (N, R, C).
    """
    a, b, c = _COEFFICIENTS
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x  # the smaller Gram matrix
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)  # no singular value above 1
    for _ in range(_ITERATIONS):
        gram = x @ x.mT  # (N, R, R)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
