"""Matrix products on the CPU, by the faster of PyTorch's libraries. T tokens, I inputs, O outputs."""

from __future__ import annotations

import functools
import platform

import torch
from torch import Tensor

from puna.native.training import has_attention


def _linear_of_onednn(x: Tensor, w: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    return out


_ONEDNN = (
    torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() != "AVX2"
)


def _is_whole(x: Tensor) -> bool:
    return x.is_contiguous() or x.t().is_contiguous()


@functools.cache
def has_bf16_products() -> bool:
    """Returns whether this processor multiplies bfloat16 matrices faster than float32 matrices."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not in older releases of PyTorch
        return has_attention() if probe is None else bool(probe())
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type in which products of matrices of a type are computed: float32 for bfloat16 if that is faster.

    Zen 3 (AVX2), 1024 x 3072 by 3072 x 576: PyTorch reaches 1.4 Gflop/s in bfloat16 and 140 in float32, and the
    conversion of the matrix takes 0.2 of 26 ms.
    """
    return torch.float32 if dtype == torch.bfloat16 and not has_bf16_products() else dtype


def note_of_products(dtype: torch.dtype) -> str:
    """Returns a note on products that have another type than `dtype`; empty if they have this type."""
    if product_dtype(dtype) == dtype:
        return ""
    return "; products in float32, which this processor multiplies faster (values are stored in bfloat16)"


def writes_products(dtype: torch.dtype) -> bool:
    """Returns whether `product` writes results of a type where it is told to."""
    return not _ONEDNN or dtype != torch.float32


def product(x: Tensor, w: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns x w', (T, O), of x (T, I) and w (O, I), either of which may be a transposed view.

    `torch.mm` calls MKL in float32, which does not use AVX-512 on processors of AMD: 210 instead of 480 Gflop/s. oneDNN
    in turn needs a thousand times as long for columns of a larger matrix. With AVX2 alone, MKL is faster: 140 instead
    of 110 Gflop/s (Zen 3).

    Args:
        out: where the result is written, if `writes_products`.
    """
    if _ONEDNN and x.dtype == torch.float32 and _is_whole(x) and _is_whole(w):
        return _linear_of_onednn(x, w)
    return torch.mm(x, w.t()) if out is None else torch.mm(x, w.t(), out=out)


def add_product(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Adds x w' to y, (T, O), in place, and returns y. For a small I."""
    return y.addmm_(x, w.t())


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """Returns g' x, (O, I), the gradient of a matrix, from that of its outputs, (T, O), and its inputs, (T, I).

    A product with more columns than rows is faster: (688, 768) x (768, 128) takes 705 us, its transpose 421 us.
    """
    return product(g.t(), x.t()) if g.shape[1] <= x.shape[1] else product(x.t(), g.t()).t()
