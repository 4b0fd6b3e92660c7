"""The matrices of linear layers that read the same inputs, as one matrix. O outputs of all of them, I inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from puna.formats.blocks import FORMATS
from puna.model.quantized import PackedMatrix, QuantLinear
from puna.native import training as native
from puna.training.forward.fused.products import product_dtype


class Matrix(Protocol):
    """A matrix that is read in every forward and backward pass."""

    def value(self) -> Tensor:
        """Returns the values, (O, I), in the type of the products; do not keep them."""
        ...


class Constant:
    """A frozen matrix.

    The layers' own parameters become views of it, so that the values are in memory once.
    """

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._dtype = product_dtype(dtype)
        parameters = [layer.weight for layer in layers]
        self._value = parameters[0].detach().to(dtype)
        if len(parameters) > 1:
            self._value = torch.cat([parameter.detach().to(dtype) for parameter in parameters])
            for parameter, rows in zip(parameters, torch.split(self._value, [len(p) for p in parameters]), strict=True):
                if parameter.dtype == dtype:
                    parameter.data = rows

    def value(self) -> Tensor:  # noqa: D102
        return self._value.to(self._dtype)


class Variable:
    """A matrix of which all or some rows train."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype
        parameters = [layer.weight for layer in layers]
        if len(parameters) > 1 and all(parameter.dtype == dtype for parameter in parameters):
            joined = torch.cat(
                [parameter.detach() for parameter in parameters]
            )  # `value` needs no copies of neighbours
            for parameter, rows in zip(parameters, torch.split(joined, [len(p) for p in parameters]), strict=True):
                parameter.data = rows

    def value(self) -> Tensor:  # noqa: D102
        return self._joined().to(product_dtype(self._dtype))

    def _joined(self) -> Tensor:
        parameters = [layer.weight.detach().to(self._dtype) for layer in self._layers]
        first, bytes_before = parameters[0], 0
        for parameter in parameters:
            if not parameter.is_contiguous() or parameter.data_ptr() != first.data_ptr() + bytes_before:
                return torch.cat(parameters)
            bytes_before += parameter.nbytes
        rows = sum(len(parameter) for parameter in parameters)  # one after another in the memory of an optimizer
        if first.untyped_storage().nbytes() < first.storage_offset() * first.element_size() + bytes_before:
            return torch.cat(parameters)
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


class Packed:
    """A frozen matrix in a block format, which is dequantised for each use."""

    def __init__(self, layers: Sequence[QuantLinear], dtype: torch.dtype) -> None:
        self._packed, self._dtype = [layer.packed for layer in layers], dtype

    def value(self) -> Tensor:  # noqa: D102
        return dequantize(self._packed, self._dtype).to(product_dtype(self._dtype))


def dequantize(matrices: Sequence[PackedMatrix], dtype: torch.dtype) -> Tensor:
    """Returns the values of matrices with equal columns, their rows one after another, (O, I), rounded to `dtype`."""
    out = torch.empty(sum(packed.rows for packed in matrices), matrices[0].columns, dtype=dtype)
    fast = dtype == torch.bfloat16 and native.is_available()
    for packed, rows in zip(matrices, torch.split(out, [packed.rows for packed in matrices]), strict=True):
        if fast and packed.format in native.DECODED and packed.blocks.is_contiguous():
            form = FORMATS[packed.format].ggml_id
            native.call("decode", torch.get_num_threads(), form, packed.blocks, *rows.shape, rows)
        else:
            rows.copy_(packed.dequantize(dtype))
    return out


def matrix_of(layers: Sequence[nn.Linear], dtype: torch.dtype) -> Matrix:
    """Returns the rows of all layers as one matrix."""
    packed = [layer for layer in layers if isinstance(layer, QuantLinear)]
    if len(packed) == len(layers):
        return Packed(packed, dtype)
    if packed or any(layer.weight.requires_grad for layer in layers):
        return Variable(layers, dtype)
    return Constant(layers, dtype)
