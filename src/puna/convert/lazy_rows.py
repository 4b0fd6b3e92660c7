"""Tensors in motion: rows of a source put in another order, type or width as they are asked for, some at a time.

Each class here is a source of rows made from another one; `pieces` walks over the last of them. Nothing holds more
than a piece, whatever the tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.weight import Bytes, Index, Rows
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat

PIECE = 16 * 2**20
"""Bytes that the rows taken at once may need, wherever on their way they are widest."""

_ROUNDS_TO_INFINITY = {"f16": 65520.0, "bf16": float(np.uint32(0x7F7F8000).view(np.float32))}
"""Least magnitudes that become infinite: half a step above the largest number of each type."""

FORGET = 4
"""Pieces after which the mapped memory read so far is given back."""


def rows_at_once(source: Rows) -> int:
    """Rows that one piece has."""
    return max(1, PIECE // source.widest)


def pieces(source: Rows, first: int = 0, last: int | None = None, step: int | None = None) -> Iterator[Bytes]:
    """The packed bytes of the rows from `first` to before `last`, in order, `step` or as many as is good at a time."""
    end = source.shape[0] if last is None else last
    step = step or rows_at_once(source)
    for number, start in enumerate(range(first, end, step), 1):
        yield source.take(np.arange(start, min(start + step, end)))
        if number % FORGET == 0:
            source.release()
    source.release()


def values(source: Rows, rows: Index) -> NDArray[np.float32]:
    """The values of some rows, (rows, values per row)."""
    return source.format.decode(source.take(rows).reshape(-1)).reshape(len(rows), -1)


def pack(numbers: NDArray[np.float32], form: BlockFormat) -> Bytes:
    """Float32 values as bytes of a plain type."""
    assert form.pack is not None, "only plain types are packed here"
    return form.pack(numbers)


@dataclass(frozen=True)
class Derived:
    """What the classes below share: a source, whose name and shape are kept."""

    source: Rows

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's."""
        return self.source.shape

    @property
    def format(self) -> BlockFormat:
        """The source's."""
        return self.source.format

    @property
    def widest(self) -> int:
        """The source's."""
        return self.source.widest

    def take(self, rows: Index) -> Bytes:
        """The source's rows."""
        return self.source.take(rows)

    def release(self) -> None:
        """Lets the source give back its memory."""
        self.source.release()


@dataclass(frozen=True)
class Reordered(Derived):
    """Row r is the source's row order[r]."""

    order: Index

    def take(self, rows: Index) -> Bytes:
        """The source's rows under their new numbers."""
        return self.source.take(self.order[rows])


@dataclass(frozen=True)
class Columns(Derived):
    """The columns from `first` to before `last` of a matrix: whole blocks."""

    first: int
    last: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's rows, fewer columns."""
        return (self.source.shape[0], self.last - self.first)

    def take(self, rows: Index) -> Bytes:
        """Those columns of some rows."""
        assert self.first % self.format.values == self.last % self.format.values == 0, "blocks cannot be cut"
        first, last = (column // self.format.values * self.format.bytes for column in (self.first, self.last))
        return self.source.take(rows)[:, first:last]


@dataclass(frozen=True)
class Cast(Derived):
    """The values in another plain type, rounded to nearest; finite values must stay finite."""

    to: BlockFormat

    @property
    def format(self) -> BlockFormat:
        """The type cast to."""
        return self.to

    @property
    def widest(self) -> int:
        """The source's, and four times the float32 values: themselves, their magnitudes, and what rounding makes."""
        return self.source.widest + 4 * _float32_bytes(self)

    def take(self, rows: Index) -> Bytes:
        """Some rows, rounded.

        Raises:
            CheckpointError: a value is too large for the type.
        """
        before = values(self.source, rows)
        limit = _ROUNDS_TO_INFINITY.get(self.to.name, np.inf)
        largest = float(np.max(np.abs(before), initial=0.0, where=np.isfinite(before)))
        if largest >= limit:
            raise CheckpointError(
                f"{self.name} holds the value {largest:.6g}, and {self.to.torch} ends below {limit:.6g}; "
                f"convert to {'bfloat16' if self.to.name == 'f16' else 'float32'}"
            )
        return pack(before, self.to).reshape(len(rows), -1)


@dataclass(frozen=True)
class Quantized(Derived):
    """The values in a block format; `importance` weighs the error of each column."""

    to: BlockFormat
    importance: NDArray[np.float32] | None = None
    threads: int | None = None

    @property
    def format(self) -> BlockFormat:
        """The block format."""
        return self.to

    @property
    def widest(self) -> int:
        """The source's, and its values as float32 where it is in blocks itself."""
        return self.source.widest + (_float32_bytes(self) if self.source.format.values > 1 else 0)

    def take(self, rows: Index) -> Bytes:
        """Some rows, quantised.

        Raises:
            CheckpointError: a value is not finite.
        """
        from puna.native.quantize import quantize

        source: Rows = self.source
        if source.format.values > 1:
            packed, kind = values(source, rows).view(np.uint8), FORMATS["f32"]
        else:
            packed, kind = source.take(rows), source.format
        try:
            return quantize(packed, kind, self.shape[-1], self.to, self.importance, self.threads)
        except CheckpointError as exc:
            raise CheckpointError(f"{self.name}: {exc}") from exc


def columns(rows: Rows, first: int, last: int) -> Rows:
    """The columns from `first` to before `last`; cut before they are cast, where the blocks end there."""
    if isinstance(rows, Cast):
        block = rows.source.format.values
        if first % block == 0 and last % block == 0:
            return Cast(columns(rows.source, first, last), rows.to)
    return Columns(rows, first, last)


def _float32_bytes(rows: Rows) -> int:
    """Bytes of a row's values as float32."""
    return 4 * math.prod(rows.shape[1:])
