"""`float_products`: products of modules in float32, where the processor is slow in bfloat16. Not for the fused pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from puna.training.forward.fused.products import product_dtype

_PRODUCTS = frozenset({F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, F.scaled_dot_product_attention})


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
        wide = [value.float() if _is_rounded(value) else value for value in args]
        named = {name: value.float() if _is_rounded(value) else value for name, value in kwargs.items()}
        return func(*wide, **named).to(torch.bfloat16)


def _is_rounded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def float_products(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Returns a context in which modules of a type compute products in `product_dtype`."""
    return nullcontext() if product_dtype(dtype) == dtype else _FloatProducts()
