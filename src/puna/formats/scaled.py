"""Matrices of small codes and their scales, as compressed-tensors and bitsandbytes store them.

Each code has a value, and groups of weights share a scale and, in some files, a zero point:

    weight[o, i] = (value of code[o, i] - zero[o, i]) * scale[o, i]

All steps are exact in float32 except the last product. It is rounded to the type that these libraries return, so that
the results are identical bit for bit. Sources: `dequantize` of compressed-tensors,
`int8_vectorwise_dequant` and `dequantize_4bit` of bitsandbytes. To add a type of codes, add one line to `CODES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats.blocks import F8, I8, I32, BlockFormat, StoredTensor
from puna.formats.parallel import unpack_rows
from puna.lazy import cached_property

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class Codes:
    """A type of codes.

    Attributes:
        name: the name in messages.
        bits: 4 or 8.
        values: the value of each code, (2^bits,).
        high_first: whether the first of two codes of four bits is in the high bits of a byte.
    """

    name: str
    bits: int
    values: Floats
    high_first: bool = False

    def unpack(self, packed: Bytes) -> Bytes:
        """Returns the codes in bytes, (..., n) -> (..., n * 8 / bits)."""
        if self.bits == 8:
            return packed
        halves = (packed & 15, packed >> 4)
        return np.stack(halves[::-1] if self.high_first else halves, axis=-1).reshape(*packed.shape[:-1], -1)


def _values_of(form: BlockFormat) -> Floats:
    return form.decode(np.arange(256, dtype=np.uint8))


def _offset_values(bits: int) -> Floats:
    """Returns the values of compressed-tensors' packed integers: the code minus half of the range."""
    values: Floats = np.arange(2**bits, dtype=np.float32) - np.float32(2 ** (bits - 1))
    return values


CODES: Mapping[str, Codes] = {
    "int4": Codes("int4", 4, _offset_values(4)),
    "int8": Codes("int8", 8, _offset_values(8)),
    I8.name: Codes("int8", 8, _values_of(I8)),
    F8.name: Codes("float8", 8, _values_of(F8)),
}
"""The codes of compressed-tensors: packed integers, and the tensor types with one byte per weight. bitsandbytes stores
the values of nf4 and fp4 in the files."""


class Numbers(Protocol):
    """Scales or zero points of the groups of a matrix."""

    def rows(self, outputs: Index) -> Floats:
        """Returns the numbers of the given outputs, (outputs, k): each is shared by inputs / k consecutive inputs."""
        ...


@dataclass(frozen=True)
class Grid:
    """A number for each group of outputs and of inputs.

    Attributes:
        stored: the numbers, with one or two axes: groups of outputs, groups of inputs.
        height: number of consecutive outputs that share a row of numbers.
        groups: the group of each input; None for groups of equal size, in order.
    """

    stored: StoredTensor
    height: int = 1
    groups: Index | None = None

    def rows(self, outputs: Index) -> Floats:
        """Implements `Numbers`."""
        packed = self.stored.take(outputs // self.height)
        numbers = self.stored.format.decode(packed.reshape(-1)).reshape(len(outputs), -1)
        return numbers if self.groups is None else numbers[:, self.groups]


@dataclass(frozen=True)
class PackedGrid:
    """Zero points of compressed-tensors, packed along the outputs into 32-bit words: (words, groups of inputs)."""

    stored: StoredTensor
    bits: int
    groups: Index | None = None

    def rows(self, outputs: Index) -> Floats:
        """Implements `Numbers`."""
        words = self.stored.take(outputs * self.bits // 32).view("<u4").reshape(len(outputs), -1)
        shifts = (outputs * self.bits % 32).astype(np.uint32)[:, None]
        codes = words >> shifts & np.uint32(2**self.bits - 1)
        numbers: Floats = _offset_values(self.bits)[codes]
        return numbers if self.groups is None else numbers[:, self.groups]


@dataclass(frozen=True)
class Nested:
    """Double quantisation: absmax[i] = values[code[i]] * scale[i // block] + offset, in float32."""

    scales: StoredTensor
    values: StoredTensor
    block: int
    offset: float


@dataclass(frozen=True)
class Blocks:
    """Scales of bitsandbytes: one for each `block` consecutive weights of the matrix, in rows of `inputs` weights."""

    absmax: StoredTensor
    block: int
    inputs: int
    nested: Nested | None = None

    def rows(self, outputs: Index) -> Floats:
        """Implements `Numbers`."""
        if self.inputs % self.block == 0:
            count = self.inputs // self.block
            return self._scales(outputs[:, None] * count + np.arange(count))
        return self._scales((outputs[:, None] * self.inputs + np.arange(self.inputs)) // self.block)

    def _scales(self, index: Index) -> Floats:
        first = int(index.min())
        span = np.arange(first, int(index.max()) + 1)
        numbers = self.absmax.format.decode(self.absmax.take(span).reshape(-1))
        if self.nested is not None:
            factors = self.nested.scales.to_float32()[span // self.nested.block]
            numbers = self.nested.values.to_float32()[numbers.astype(np.intp)] * factors
            numbers += np.float32(self.nested.offset)
        return numbers[index - first]


@dataclass(frozen=True)
class ScaledMatrix:
    """A matrix of codes and scales, whose rows are returned in a plain format.

    Attributes:
        method: the name of the method in messages and reports.
        shape: (outputs, inputs).
        format: the type to which the products are rounded.
        packed: the bytes of the codes: `shape[0]` rows of equal length, in order.
        factor: each product, rounded to float32, is multiplied by `factor`, and the result is rounded to `format`.
    """

    name: str
    method: str
    shape: tuple[int, int]
    format: BlockFormat
    codes: Codes
    packed: StoredTensor
    scales: Numbers
    zeros: Numbers | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        outputs, inputs = self.shape
        size, row = self.packed.format.size(self.packed.shape), inputs * self.codes.bits // 8
        unit = self.packed.format.bytes if self.packed.format == I32 else 1  # rows are padded to entire words
        if inputs * self.codes.bits % 8 or size != outputs * -(-row // unit) * unit:
            raise CheckpointError(
                f"tensor {self.packed.name!r} has {size} bytes; a matrix of shape {self.shape} in {self.codes.name} "
                f"needs {outputs * row}. The files do not belong together"
            )

    @cached_property
    def _stored_rows(self) -> StoredTensor:
        """`packed` with one row for each output."""
        values = math.prod(self.packed.shape) // self.shape[0]
        return replace(self.packed, shape=(self.shape[0], values), raw=self.packed.raw.reshape(-1))

    def take(self, outputs: Index) -> Bytes:
        """Returns the packed bytes of the given rows, (rows, bytes per row).

        Raises:
            CheckpointError: a value is too large for the type.
        """
        return unpack_rows(
            lambda rows: self.format.pack_scaled(self._values(rows), self.name), outputs, self.shape[1], self.row_memory
        )

    def _values(self, outputs: Index) -> Floats:
        packed = self._stored_rows.take(outputs)
        values = self.codes.values[self.codes.unpack(packed)[:, : self.shape[1]]]
        if self.zeros is not None:
            zeros = self.zeros.rows(outputs)
            _grouped(values, zeros)[...] -= zeros[:, :, None]
        scales = self.scales.rows(outputs)
        with np.errstate(over="ignore", invalid="ignore"):  # `pack_scaled` reports infinities
            _grouped(values, scales)[...] *= scales[:, :, None]
            if self.factor != 1:
                values *= np.float32(self.factor)
        return values

    @property
    def row_memory(self) -> int:
        """Bytes of a row. Temporary arrays are not included: `VALUES_AT_ONCE` bounds them for each thread."""
        return self.format.row_size(self.shape)

    @property
    def data(self) -> Bytes:
        """The packed bytes of all rows, flat."""
        return self.take(np.arange(self.shape[0])).reshape(-1)

    def release(self) -> None:
        """Lets the system drop the file's bytes from memory; later accesses read the file again."""
        self.packed.release()


def _grouped(values: Floats, numbers: Floats) -> Floats:
    """Views values, (n, inputs), as (n, k, inputs / k), for numbers (n, k)."""
    return values.reshape(*numbers.shape, -1)
