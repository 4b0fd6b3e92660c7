"""The matrices of linear layers that read the same inputs, as one matrix, and products with it.

Products read a large matrix in panels of rows, each of which is converted or dequantised just before it is multiplied,
so that its values never exist at the same time in the type of the products.

Legend: T tokens, O outputs of all layers, I inputs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from puna.formats.blocks import FORMATS
from puna.model.quantized import PackedMatrix, QuantLinear
from puna.native import training as native
from puna.training.forward.fused.block import mapped
from puna.training.forward.fused.products import product, product_dtype

PANEL_VALUES = 1 << 21
"""Values of a panel: 8 MB in float32."""


class Matrix(Protocol):
    """A matrix, (O, I), that is read in every forward and backward pass."""

    @property
    def rows(self) -> int:
        """Number of rows, O."""
        ...

    def panels(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields consecutive rows and their values in the type of the products.

        Do not keep values: the next ones may have the same memory.
        """
        ...


class Stored:
    """A matrix whose values are in memory."""

    def __init__(self, value: Tensor, dtype: torch.dtype) -> None:
        self._value, self._dtype = value, dtype

    @property
    def rows(self) -> int:  # noqa: D102
        return len(self._value)

    def panels(self) -> Iterator[tuple[slice, Tensor]]:  # noqa: D102
        dtype = product_dtype(self._dtype)
        size = len(self._value) if self._value.dtype == dtype else _panel_rows(self._value.shape[1])
        for rows in _slices(len(self._value), size):
            yield rows, self._value[rows].to(dtype)


class Variable:
    """A matrix of which all or some rows train."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._layers, self._dtype = layers, dtype
        self.rows = sum(layer.out_features for layer in layers)
        parameters = [layer.weight for layer in layers]
        if len(parameters) > 1 and all(parameter.dtype == dtype for parameter in parameters):
            joined = torch.cat(
                [parameter.detach() for parameter in parameters]
            )  # `panels` needs no copies of neighbours
            for parameter, rows in zip(parameters, torch.split(joined, [len(p) for p in parameters]), strict=True):
                parameter.data = rows

    def panels(self) -> Iterator[tuple[slice, Tensor]]:  # noqa: D102
        return Stored(self._joined(), self._dtype).panels()

    def _joined(self) -> Tensor:
        parameters = [layer.weight.detach().to(self._dtype) for layer in self._layers]
        first, bytes_before = parameters[0], 0
        for parameter in parameters:
            if not parameter.is_contiguous() or parameter.data_ptr() != first.data_ptr() + bytes_before:
                return torch.cat(parameters)
            bytes_before += parameter.nbytes
        if first.untyped_storage().nbytes() < first.storage_offset() * first.element_size() + bytes_before:
            return torch.cat(parameters)
        # one after another in the memory of an optimizer
        return first.as_strided((self.rows, first.shape[1]), (first.shape[1], 1))


class Packed:
    """A frozen matrix in block formats, which is dequantised for each use. Its values are rounded to `dtype`."""

    def __init__(self, layers: Sequence[QuantLinear], dtype: torch.dtype) -> None:
        self._packed, self._dtype = [layer.packed for layer in layers], dtype
        self.rows = sum(packed.rows for packed in self._packed)

    def panels(self) -> Iterator[tuple[slice, Tensor]]:  # noqa: D102
        dtype, columns = product_dtype(self._dtype), self._packed[0].columns
        if dtype == self._dtype:
            yield slice(0, self.rows), dequantize(self._packed, dtype)
            return
        if self.rows <= _panel_rows(columns):
            out = _panel(self.rows, columns, dtype)
            _dequantize_all(self._packed, self._dtype, out)
            yield slice(0, self.rows), out
            return
        start = 0
        for packed in self._packed:
            for rows in _slices(packed.rows, _panel_rows(columns)):
                out = _panel(rows.stop - rows.start, columns, dtype)
                _dequantize_rows(packed, rows, self._dtype, out)
                yield slice(start + rows.start, start + rows.stop), out
            start += packed.rows


_scratch = threading.local()


def _panel(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Returns memory for a panel, (rows, columns): the same for all panels of a thread."""
    size = rows * columns * dtype.itemsize
    memory: Tensor = getattr(_scratch, "memory", torch.empty(0, dtype=torch.uint8))
    if len(memory) < size:
        memory = _scratch.memory = torch.frombuffer(mapped(size), dtype=torch.uint8)
    return memory[:size].view(dtype).view(rows, columns)


def product_with(x: Tensor, matrix: Matrix, out: Tensor | None = None) -> Tensor:
    """Returns x w', (T, O), of x (T, I) and a matrix w, in the type of the products.

    Args:
        out: where the result is written, if `writes_products`.
    """
    for rows, panel in matrix.panels():
        if len(panel) == matrix.rows:
            return product(x, panel, out)
        out = x.new_empty(len(x), matrix.rows) if out is None else out
        torch.mm(x, panel.t(), out=out[:, rows])
        del panel  # before the next one exists
    assert out is not None, "a matrix has rows"
    return out


def product_with_rows(x: Tensor, matrix: Matrix) -> Tensor:
    """Returns x w, (T, I), of x (T, O) and a matrix w, in the type of the products."""
    out: Tensor | None = None
    for rows, panel in matrix.panels():
        if len(panel) == matrix.rows:
            return product(x, panel.t())
        out = torch.mm(x[:, rows], panel) if out is None else out.addmm_(x[:, rows], panel)
        del panel
    assert out is not None, "a matrix has rows"
    return out


def dequantize(matrices: Sequence[PackedMatrix], dtype: torch.dtype) -> Tensor:
    """Returns the values of matrices with equal columns, their rows one after another, (O, I), rounded to `dtype`."""
    out = torch.empty(sum(packed.rows for packed in matrices), matrices[0].columns, dtype=dtype)
    _dequantize_all(matrices, dtype, out)
    return out


def _dequantize_all(matrices: Sequence[PackedMatrix], dtype: torch.dtype, out: Tensor) -> None:
    """Writes the values of matrices, rounded to `dtype`, to `out`, whose type may be wider."""
    for packed, rows in zip(matrices, torch.split(out, [packed.rows for packed in matrices]), strict=True):
        _dequantize_rows(packed, slice(0, packed.rows), dtype, rows)


def is_decoded(packed: PackedMatrix, dtype: torch.dtype) -> bool:
    """Returns whether the native library dequantises a matrix."""
    is_whole = packed.format in native.DECODED and packed.blocks.is_contiguous()
    return is_whole and dtype == torch.bfloat16 and native.is_available()


def _dequantize_rows(packed: PackedMatrix, rows: slice, dtype: torch.dtype, out: Tensor) -> None:
    """Writes the values of rows of a matrix, rounded to `dtype`, to `out`, whose type may be wider."""
    blocks = packed.blocks[rows]
    if not is_decoded(packed, dtype):
        out.copy_(packed.values(blocks, dtype))
        return
    is_narrow = out.dtype == dtype
    native.call(
        "decode", torch.get_num_threads(), FORMATS[packed.format].ggml_id, blocks, *out.shape,
        out if is_narrow else None, None if is_narrow else out,
    )  # fmt: skip


def _panel_rows(columns: int) -> int:
    return max(1, PANEL_VALUES // columns)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def matrix_of(layers: Sequence[nn.Linear], dtype: torch.dtype) -> Matrix:
    """Returns the rows of all layers as one matrix. If all are frozen, their parameters become views of its values."""
    packed = [layer for layer in layers if isinstance(layer, QuantLinear)]
    if len(packed) == len(layers):
        return Packed(packed, dtype)
    if packed or any(layer.weight.requires_grad for layer in layers):
        return Variable(layers, dtype)
    parameters = [layer.weight for layer in layers]
    if len(parameters) == 1:
        return Stored(parameters[0].detach().to(dtype), dtype)
    value = torch.cat([parameter.detach().to(dtype) for parameter in parameters])
    for parameter, rows in zip(parameters, torch.split(value, [len(p) for p in parameters]), strict=True):
        if parameter.dtype == dtype:
            parameter.data = rows
    return Stored(value, dtype)


def packed_head(layer: QuantLinear, dtype: torch.dtype) -> Matrix:
    """Returns the matrix of a head, which is multiplied several times in a forward pass.

    Its values are dequantised for each product where the product would convert them anyway, which takes about as long;
    otherwise once.
    """
    if product_dtype(dtype) != dtype and is_decoded(layer.packed, dtype):
        return Packed([layer], dtype)
    return Stored(dequantize([layer.packed], dtype), dtype)
