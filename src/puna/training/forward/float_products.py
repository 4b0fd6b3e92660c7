"""`float_products`: products of modules in float32, where the processor is slow in bfloat16. Not for the fused pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from puna.model.quantized import packed_linear
from puna.training.forward.fused.products import product_dtype

_PRODUCTS = frozenset(
    {F.linear, packed_linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, F.scaled_dot_product_attention}
)


class _FloatProducts(TorchFunctionMode):
    """Computes products of bfloat16 tensors, and their gradients, in float32; results are rounded to bfloat16."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(_is_rounded(value) for value in args):
            return func(*args, **kwargs)
        if func is F.linear:
            return _linear(*args, **kwargs)
        wide = [value.float() if _is_rounded(value) else value for value in args]
        named = {name: value.float() if _is_rounded(value) else value for name, value in kwargs.items()}
        return func(*wide, **named).to(torch.bfloat16)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Linear(torch.autograd.Function):
    """x W' + b in float32, rounded to bfloat16. The backward pass converts again what it reads, in its own type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.dtypes = (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        g = gradients[0].float()  # (..., O)
        rows = g.reshape(-1, g.shape[-1])
        results = (
            g @ weight.float() if for_x else None,
            rows.t() @ x.float().reshape(-1, x.shape[-1]) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )
        return tuple(None if item is None else item.to(to) for item, to in zip(results, ctx.dtypes, strict=True))


def _is_rounded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def float_products(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Returns a context in which modules of a type compute products in `product_dtype`."""
    return nullcontext() if product_dtype(dtype) == dtype else _FloatProducts()
