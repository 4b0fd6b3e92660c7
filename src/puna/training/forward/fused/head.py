"""The cross-entropy of a head whose logits never exist at the same time: the gradient is formed in the forward pass.

Legend: T tokens, S supervised tokens, C rows of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.training.forward.fused.block import mapped
from puna.training.forward.fused.matrices import Matrix, Packed, product_with, product_with_rows
from puna.training.forward.fused.operations import Operations
from puna.training.forward.fused.products import product, product_dtype, writes_products
from puna.training.forward.rows import Supervised

CHUNK_BYTES = 100 << 20
"""Maximum size of the logits of a chunk. Products with 1,024 rows of SmolLM2 are a tenth faster than with 256."""

SMALL_CHUNK_BYTES = 50 << 20
"""The same for packed heads, which are chosen to save memory. In float32 on Zen 3, SmolLM2's head takes 2.6 ms of
processor time per row with chunks of 25 MB, 2.3 ms with 50 MB and 2.0 ms with 100 MB."""

UNIT = 32
"""The rows are padded to a multiple of this, with weight 0, so that oneDNN compiles code for few shapes."""


def chunk_rows(vocabulary: int, dtype: torch.dtype, is_packed: bool) -> int:
    """Returns the number of rows of logits of a type that exist at the same time."""
    limit = SMALL_CHUNK_BYTES if is_packed else CHUNK_BYTES
    return max(UNIT, limit // (vocabulary * dtype.itemsize) // UNIT * UNIT)


def cross_entropy(
    hidden: Tensor, weight: Tensor | None, tokens: Supervised, scale: float, matrix: Matrix, operations: Operations
) -> Tensor:
    """Returns the scalar sum of weights * CE * scale, float32.

    Args:
        hidden: (T, D), after the final norm.
        weight: (V, D), the parameter that receives the head's gradient; None for packed heads.
        tokens: the supervised tokens.
        matrix: (V, D), the values of the head.
        operations: compute the cross-entropy of a chunk.
    """
    out: Tensor = _Function.apply(hidden, weight, tokens, scale, matrix, operations)  # type: ignore[no-untyped-call]
    return out


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        tokens: Supervised,
        scale: float,
        matrix: Matrix,
        operations: Operations,
    ) -> Tensor:
        ctx.count = len(tokens.rows)
        sources, targets, weights = _padded(tokens)
        states = hidden[sources].to(product_dtype(hidden.dtype))  # (S, D)
        train_hidden, train_weight = ctx.needs_input_grad[:2]
        gradient = torch.empty_like(states) if train_hidden else None
        weight_gradient: Tensor | None = None
        total = torch.zeros((), dtype=torch.float64)
        dtype = states.dtype
        size = chunk_rows(matrix.rows, dtype, weight is None)
        chunk = _mapped_logits(min(size, len(states)), matrix, dtype) if isinstance(matrix, Packed) else None
        for start in range(0, len(states), size):
            rows = slice(start, start + size)
            count = min(size, len(states) - start)
            logits = product_with(states[rows], matrix, None if chunk is None else chunk[:count])  # (C, V)
            total += operations.cross_entropy(
                logits, targets[rows], weights[rows] * scale, train_hidden or train_weight
            )
            if gradient is not None:
                gradient[rows] = product_with_rows(logits, matrix)
            if train_weight:
                part = product(logits.t(), states[rows].t())
                weight_gradient = part.float() if weight_gradient is None else weight_gradient.add_(part)
            del logits
        del chunk
        ctx.save_for_backward(gradient, tokens.rows)
        ctx.weight_gradient = weight_gradient  # no activation: its size does not depend on the tokens
        ctx.tokens, ctx.dtypes = len(hidden), (hidden.dtype, None if weight is None else weight.dtype)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, rows = ctx.saved_tensors
        weight_gradient, ctx.weight_gradient = ctx.weight_gradient, None
        (g,) = gradients
        full = None
        if gradient is not None:
            full = gradient.new_zeros(ctx.tokens, gradient.shape[1], dtype=ctx.dtypes[0])
            full[rows] = (gradient[: ctx.count] * g.to(gradient.dtype)).to(full.dtype)
        gw = None if weight_gradient is None else weight_gradient.mul_(g).to(ctx.dtypes[1])
        return full, gw, None, None, None, None


def _mapped_logits(rows: int, matrix: Packed, dtype: torch.dtype) -> Tensor | None:
    """Returns memory apart from the heap for logits, (rows, V), or None if products cannot be written to it.

    Logits on the heap would leave a gap that nothing else fills. The time to map it is small next to that of the head.
    """
    if not writes_products(dtype):
        return None
    count = rows * matrix.rows
    return torch.frombuffer(mapped(count * dtype.itemsize), dtype=dtype, count=count).view(rows, matrix.rows)


def _padded(tokens: Supervised) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the rows, targets and weights of the tokens, with zeros at the end."""
    missing = -len(tokens.rows) % UNIT
    parts = (tokens.rows, tokens.targets, tokens.weights)
    rows, targets, weights = (torch.nn.functional.pad(part, (0, missing)) for part in parts)
    return rows, targets, weights
