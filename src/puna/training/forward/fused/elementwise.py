"""Norms, rotations and activations with their gradients, computed in float32 and rounded once.

Legend: T tokens, D hidden, I intermediate, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x, (T, D), divided by the root mean square of its rows and multiplied by the weight, (D,)."""
    return F.rms_norm(x, (x.shape[1],), weight, eps)


def rms_norm_backward(g: Tensor, x: Tensor, weight: Tensor, eps: float, train: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of x, in its type, and of the weight, float32, or None unless `train`; g is (T, D)."""
    wide, gradient = x.float(), g.float()
    scale = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_().div_(x.shape[1]).add_(eps).rsqrt_()  # (T, 1)
    normed = wide * scale
    weight_gradient = (gradient * normed).sum(0) if train else None
    inner = gradient * weight.float()
    means = torch.linalg.vecdot(inner, normed)[:, None].div_(x.shape[1])  # (T, 1)
    inner.addcmul_(normed, means, value=-1).mul_(scale)
    return inner.to(x.dtype), weight_gradient


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates the heads of x, (T, heads, E), in place; cos and sin are (T, 1, E/2) float32 (half-split layout)."""
    first, second = x.float().chunk(2, dim=-1)
    half = x.shape[-1] // 2
    rotated = torch.addcmul(first * cos, second, sin, value=-1)
    x[..., half:] = torch.addcmul(second * cos, first, sin)
    x[..., :half] = rotated


def gated(gate_up: Tensor) -> Tensor:
    """Returns silu(gate) * up, (T, I), of the gates and, next to them, the factors: (T, 2 I)."""
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate).mul_(up)


def gated_backward(g: Tensor, gate_up: Tensor) -> Tensor:
    """Returns the gradient of `gate_up`, (T, 2 I), from that of `gated`, (T, I)."""
    gate, up = gate_up.chunk(2, dim=1)
    out = torch.empty_like(gate_up)
    torch.mul(g, F.silu(gate), out=out[:, gate.shape[1] :])
    torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=out[:, : gate.shape[1]])
    return out
