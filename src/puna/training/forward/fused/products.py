"""Matrix products on the CPU, by the faster of PyTorch's libraries. T tokens, I inputs, O outputs."""

from __future__ import annotations

import torch
from torch import Tensor


def _linear_of_onednn(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    return out


_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _is_whole(x: Tensor) -> bool:
    return x.is_contiguous() or x.t().is_contiguous()


def product(x: Tensor, w: Tensor) -> Tensor:
    """Returns x w', (T, O), of x (T, I) and w (O, I), either of which may be a transposed view.

    `torch.mm` calls MKL in float32, which does not use AVX-512 on processors of AMD: 210 instead of 480 Gflop/s. oneDNN
    in turn needs a thousand times as long for columns of a larger matrix.
    """
    if _ONEDNN and x.dtype == torch.float32 and _is_whole(x) and _is_whole(w):
        return _linear_of_onednn(x, w)
    return torch.mm(x, w.t())


def add_product(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Adds x w' to y, (T, O), in place, and returns y. For a small I."""
    return y.addmm_(x, w.t())


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """Returns g' x, (O, I), the gradient of a matrix, from that of its outputs, (T, O), and its inputs, (T, I).

    A product with more columns than rows is faster: (688, 768) x (768, 128) takes 705 us, its transpose 421 us.
    """
    return product(g.t(), x.t()) if g.shape[1] <= x.shape[1] else product(x.t(), g.t()).t()
