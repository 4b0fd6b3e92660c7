"""The operations of a layer that are not matrix products: in PyTorch for every type, and native for bfloat16.

Values are computed in float32 and rounded once. Legend: T tokens, D hidden, I intermediate, E head width, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.native import training as native

PART_BYTES = 6 << 20
"""Maximum size of the float32 logits that are in memory at the same time, which should fit in the cache."""


class Operations(Protocol):
    """Norms, activations, rotations and the cross-entropy, with their gradients."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Returns x, (T, D), divided by the root mean square of its rows and multiplied by the weight, (D,)."""
        ...

    def norm_backward(self, g: Tensor, x: Tensor, weight: Tensor, eps: float, add: Tensor | None) -> Tensor:
        """Returns the gradient of x, from that of the norm, plus `add`."""
        ...

    def gated(self, gate_up: Tensor) -> Tensor:
        """Returns silu(gate) * up, (T, I), of the gates and, next to them, the factors: (T, 2 I)."""
        ...

    def gated_backward(self, g: Tensor, gate_up: Tensor) -> Tensor:
        """Returns the gradient of `gate_up`, (T, 2 I), from that of `gated`, (T, I)."""
        ...

    def rotate_(self, x: Tensor, heads: int, cos: Tensor, sin: Tensor, sign: int) -> None:
        """Rotates the first heads of x, (T, any), in place, by `sign` times the angles; cos and sin are (T, E/2)."""
        ...

    def cross_entropy(self, logits: Tensor, targets: Tensor, factors: Tensor, train: bool) -> Tensor:
        """Returns the sum of factors * CE of logits, (T, V), float64; if `train`, gradients replace the logits."""
        ...


class TorchOperations:
    """The operations in PyTorch."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: D102
        return F.rms_norm(x, (x.shape[1],), weight.to(x.dtype), eps)

    def norm_backward(self, g: Tensor, x: Tensor, weight: Tensor, eps: float, add: Tensor | None) -> Tensor:  # noqa: D102
        normed, scale = normed_rows(x, eps)
        inner = g.float() * weight.float()
        means = torch.linalg.vecdot(inner, normed)[:, None].div_(x.shape[1])  # (T, 1)
        inner.addcmul_(normed, means, value=-1).mul_(scale)
        return (inner if add is None else inner.add_(add)).to(x.dtype)

    def gated(self, gate_up: Tensor) -> Tensor:  # noqa: D102
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate).mul_(up)

    def gated_backward(self, g: Tensor, gate_up: Tensor) -> Tensor:  # noqa: D102
        gate, up = gate_up.chunk(2, dim=1)
        out = torch.empty_like(gate_up)
        torch.mul(g, F.silu(gate), out=out[:, gate.shape[1] :])
        torch.ops.aten.silu_backward.grad_input(g * up, gate, grad_input=out[:, : gate.shape[1]])
        return out

    def rotate_(self, x: Tensor, heads: int, cos: Tensor, sin: Tensor, sign: int) -> None:  # noqa: D102
        half = cos.shape[1]
        view = x.view(len(x), -1, 2 * half)[:, :heads]
        cos, sin = cos[:, None], sin[:, None] * sign
        first, second = view[..., :half].float(), view[..., half:].float()
        rotated = torch.addcmul(first * cos, second, sin, value=-1)
        view[..., half:] = torch.addcmul(second * cos, first, sin)
        view[..., :half] = rotated

    def cross_entropy(self, logits: Tensor, targets: Tensor, factors: Tensor, train: bool) -> Tensor:  # noqa: D102
        total = torch.zeros((), dtype=torch.float64)
        step = max(1, PART_BYTES // (4 * logits.shape[1]))
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            index, factor = targets[rows, None], factors[rows, None]
            wide = logits[rows].to(torch.float32, copy=not train)
            wide -= wide.amax(1, keepdim=True)
            chosen = wide.gather(1, index)
            sums = wide.exp_().sum(1, keepdim=True)
            total += ((sums.log() - chosen) * factor).sum(dtype=torch.float64)
            if train:
                wide.mul_(factor / sums).scatter_add_(1, index, -factor)
                logits[rows] = wide
        return total


class NativeOperations:
    """The operations in the native library, for contiguous bfloat16 matrices."""

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: D102
        out = torch.empty_like(x)
        native.call("norm", torch.get_num_threads(), x, weight.float(), eps, *x.shape, out)
        return out

    def norm_backward(self, g: Tensor, x: Tensor, weight: Tensor, eps: float, add: Tensor | None) -> Tensor:  # noqa: D102
        out = torch.empty_like(x)
        native.call("norm_backward", torch.get_num_threads(), g, x, weight.float(), eps, *x.shape, add, out)
        return out

    def gated(self, gate_up: Tensor) -> Tensor:  # noqa: D102
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        native.call("gated", torch.get_num_threads(), gate_up, *out.shape, out)
        return out

    def gated_backward(self, g: Tensor, gate_up: Tensor) -> Tensor:  # noqa: D102
        out, again = torch.empty_like(gate_up), torch.empty_like(g)
        native.call("gated_backward", torch.get_num_threads(), g, gate_up, *g.shape, again, out)
        return out

    def rotate_(self, x: Tensor, heads: int, cos: Tensor, sin: Tensor, sign: int) -> None:  # noqa: D102
        rows, stride = x.shape
        native.call("rotate", torch.get_num_threads(), x, stride, rows, heads, cos.shape[1], cos, sin, float(sign))

    def cross_entropy(self, logits: Tensor, targets: Tensor, factors: Tensor, train: bool) -> Tensor:  # noqa: D102
        if logits.dtype != torch.bfloat16:  # of a product in float32
            return TorchOperations().cross_entropy(logits, targets, factors, train)
        losses = torch.empty(len(logits), dtype=torch.float64)
        threads, targets, factors = torch.get_num_threads(), targets.contiguous(), factors.contiguous()
        native.call("cross_entropy", threads, logits, *logits.shape, targets, factors, int(train), losses)
        return losses.sum()


def normed_rows(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Returns the rows of x, (T, D), divided by their root mean square, float32, and the factors, (T, 1)."""
    wide = x.float()
    scale = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_().div_(x.shape[1]).add_(eps).rsqrt_()
    return wide * scale, scale


def operations_for(dtype: torch.dtype) -> Operations:
    """Returns the fastest implementation for a type on this processor."""
    return NativeOperations() if dtype == torch.bfloat16 and native.is_available() else TorchOperations()
