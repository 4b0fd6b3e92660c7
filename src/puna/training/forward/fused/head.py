"""The cross-entropy of a head whose logits never exist at the same time: the gradient is formed in the forward pass.

Legend: T tokens, S supervised tokens, C rows of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.training.forward.fused.operations import Operations
from puna.training.forward.fused.products import product
from puna.training.forward.rows import Supervised

CHUNK_BYTES = 24 << 20
"""Maximum size of the logits of a chunk. glibc returns larger blocks of memory to the system after each use, and the
system then clears them for the next one."""


def cross_entropy(
    hidden: Tensor, weight: Tensor, tokens: Supervised, scale: float, value: Tensor, operations: Operations
) -> Tensor:
    """Returns the scalar sum of weights * CE * scale, float32.

    Args:
        hidden: (T, D), after the final norm.
        weight: (V, D), the parameter that receives the head's gradient.
        tokens: the supervised tokens.
        value: (V, D), the values of `weight` in the type of `hidden`.
        operations: compute the cross-entropy of a chunk.
    """
    out: Tensor = _Function.apply(hidden, weight, tokens, scale, value, operations)  # type: ignore[no-untyped-call]
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Supervised,
        scale: float,
        value: Tensor,
        operations: Operations,
    ) -> Tensor:
        states = hidden[tokens.rows]  # (S, D)
        train_hidden, train_weight = ctx.needs_input_grad[:2]
        gradient = torch.empty_like(states) if train_hidden else None
        weight_gradient = torch.zeros(value.shape) if train_weight else None
        total = torch.zeros((), dtype=torch.float64)
        size = max(1, CHUNK_BYTES // (value.nbytes // value.shape[1]))
        for start in range(0, len(states), size):
            rows = slice(start, start + size)
            logits = product(states[rows], value)  # (C, V)
            factors = tokens.weights[rows] * scale
            total += operations.cross_entropy(logits, tokens.targets[rows], factors, train_hidden or train_weight)
            if gradient is not None:
                gradient[rows] = product(logits, value.t())
            if weight_gradient is not None:
                weight_gradient += product(logits.t(), states[rows].t())
        ctx.save_for_backward(gradient, weight_gradient, tokens.rows)
        ctx.tokens, ctx.dtype = len(hidden), weight.dtype
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weight_gradient, rows = ctx.saved_tensors
        (g,) = gradients
        full = None
        if gradient is not None:
            full = gradient.new_zeros(ctx.tokens, gradient.shape[1])
            full[rows] = gradient * g.to(gradient.dtype)
        return full, None if weight_gradient is None else weight_gradient.mul_(g).to(ctx.dtype), None, None, None, None
