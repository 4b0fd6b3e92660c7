"""Tensors that are computed, a few rows at a time, when they are read: a source in another type, format or width.

Each class wraps another `RowSource`, and `pieces` reads the outermost wrapper. The size of a piece bounds the memory,
however large the tensor is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.weight import Bytes, Index, RowSource
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat

PIECE = 16 * 2**20
"""Memory in bytes that the rows of one piece may need while they are read (`row_memory`)."""

RELEASE_EVERY = 4
"""Number of pieces after which their mapped memory is released."""

_ROUNDS_TO_INFINITY = {"f16": 65520.0, "bf16": float(np.uint32(0x7F7F8000).view(np.float32))}
"""Smallest magnitudes that round to infinity: half a step above the largest number of each type."""


def rows_per_piece(source: RowSource) -> int:
    """Returns the number of rows that are read at once."""
    return max(1, PIECE // source.row_memory)


def pieces(source: RowSource, first: int = 0, last: int | None = None, step: int | None = None) -> Iterator[Bytes]:
    """Yields the packed bytes of the rows `first` to `last` - 1 in order, `step` rows at a time.

    Args:
        last: None means up to the last row.
        step: None means `rows_per_piece`.
    """
    end = source.shape[0] if last is None else last
    step = step or rows_per_piece(source)
    for number, start in enumerate(range(first, end, step), 1):
        yield source.take(np.arange(start, min(start + step, end)))
        if number % RELEASE_EVERY == 0:
            source.release()
    source.release()


def values(source: RowSource, rows: Index) -> NDArray[np.float32]:
    """Returns the values of the given rows, (rows, values per row)."""
    return source.format.decode(source.take(rows).reshape(-1)).reshape(len(rows), -1)


def pack(numbers: NDArray[np.float32], form: BlockFormat) -> Bytes:
    """Returns float32 values as the bytes of a plain type."""
    assert form.pack is not None, "blocks of several values are packed by Quantized"
    return form.pack(numbers)


@dataclass(frozen=True)
class LazyRows(ABC):
    """Base class of the computed tensors: a `RowSource` with the name, shape and format of its source by default."""

    source: RowSource

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape."""
        return self.source.shape

    @property
    def format(self) -> BlockFormat:
        """The source's format."""
        return self.source.format

    @property
    def row_memory(self) -> int:
        """The memory that reading one row of the source needs, in bytes."""
        return self.source.row_memory

    @property
    def data(self) -> Bytes:
        """The packed bytes of all rows, flat."""
        return self.take(np.arange(self.shape[0])).reshape(-1)

    @abstractmethod
    def take(self, rows: Index) -> Bytes:
        """Returns the packed bytes of the given rows, (rows, bytes per row)."""

    def release(self) -> None:
        """Lets the system drop the source's bytes from memory."""
        self.source.release()


@dataclass(frozen=True)
class Columns(LazyRows):
    """The columns `first` to `last` - 1 of a matrix; both must be multiples of the block size."""

    first: int
    last: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's rows, and the number of columns in the slice."""
        return (self.source.shape[0], self.last - self.first)

    def take(self, rows: Index) -> Bytes:
        """Returns the slice of the given rows."""
        assert self.first % self.format.values == self.last % self.format.values == 0, "blocks cannot be split"
        first, last = (column // self.format.values * self.format.bytes for column in (self.first, self.last))
        return self.source.take(rows)[:, first:last]


@dataclass(frozen=True)
class Cast(LazyRows):
    """The source's values in another plain type, rounded to nearest. Finite values must stay finite."""

    to: BlockFormat

    @property
    def format(self) -> BlockFormat:
        """The type of the result."""
        return self.to

    @property
    def row_memory(self) -> int:
        """The source's memory and four float32 arrays: values, magnitudes, and two temporary arrays of rounding."""
        return self.source.row_memory + 4 * _float32_bytes(self)

    def take(self, rows: Index) -> Bytes:
        """Returns the given rows, rounded.

        Raises:
            CheckpointError: a value is too large for the type.
        """
        numbers = values(self.source, rows)
        limit = _ROUNDS_TO_INFINITY.get(self.to.name, np.inf)
        largest = float(np.max(np.abs(numbers), initial=0.0, where=np.isfinite(numbers)))
        if largest >= limit:
            raise CheckpointError(
                f"{self.name} holds the value {largest:.6g}, but {self.to.torch} holds magnitudes below {limit:.6g}; "
                f"convert to {'bfloat16' if self.to.name == 'f16' else 'float32'}"
            )
        return pack(numbers, self.to).reshape(len(rows), -1)


@dataclass(frozen=True)
class Quantized(LazyRows):
    """The source's values in a block format. `importance` holds the weight of the error in each column."""

    to: BlockFormat
    importance: NDArray[np.float32] | None = None
    threads: int | None = None

    @property
    def format(self) -> BlockFormat:
        """The block format of the result."""
        return self.to

    @property
    def row_memory(self) -> int:
        """The source's memory, and its values as float32 if its format has blocks."""
        return self.source.row_memory + (_float32_bytes(self) if self.source.format.values > 1 else 0)

    def take(self, rows: Index) -> Bytes:
        """Returns the given rows, quantised.

        Raises:
            CheckpointError: a value is not finite.
        """
        from puna.native.quantize import quantize

        if self.source.format.values > 1:
            packed, form = values(self.source, rows).view(np.uint8), FORMATS["f32"]
        else:
            packed, form = self.source.take(rows), self.source.format
        try:
            return quantize(packed, form, self.shape[-1], self.to, self.importance, self.threads)
        except CheckpointError as exc:
            raise CheckpointError(f"{self.name}: {exc}") from exc


def columns(source: RowSource, first: int, last: int) -> RowSource:
    """Returns the columns `first` to `last` - 1; slices before a cast if no block is split, to cast fewer values."""
    if isinstance(source, Cast):
        block = source.source.format.values
        if first % block == 0 and last % block == 0:
            return Cast(columns(source.source, first, last), source.to)
    return Columns(source, first, last)


def as_floats(source: RowSource) -> RowSource:
    """Returns the source if its type is plain, else its values as float32."""
    return source if source.format.values == 1 else Cast(source, FORMATS["f32"])


def _float32_bytes(source: RowSource) -> int:
    """Returns the bytes of a row's values as float32."""
    return 4 * math.prod(source.shape[1:])
