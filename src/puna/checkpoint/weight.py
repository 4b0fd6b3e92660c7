"""`Weight`: one tensor of a model, with Hugging Face's name and row order for every file format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.formats.blocks import BlockFormat

Index = NDArray[np.intp]
Bytes = NDArray[np.uint8]


class RowSource(Protocol):
    """A tensor that can be read row by row. Each element of a vector is a row.

    Implemented by `StoredTensor`, `GroupedMatrix`, `ScaledMatrix` and `Weight`, and by the tensors that a conversion
    computes.
    """

    @property
    def name(self) -> str:
        """The name used in messages."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, outermost axis first."""
        ...

    @property
    def format(self) -> BlockFormat:
        """The format of the values."""
        ...

    @property
    def row_memory(self) -> int:
        """Memory that reading one row needs, in bytes, temporary arrays included."""
        ...

    @property
    def data(self) -> Bytes:
        """The packed bytes of all rows, flat."""
        ...

    def take(self, rows: Index) -> Bytes:
        """Returns the packed bytes of the given rows, (rows, bytes per row)."""
        ...

    def release(self) -> None:
        """Lets the system drop the mapped file's bytes from memory."""
        ...


@dataclass(frozen=True)
class Weight:
    """A tensor of a model, whose bytes stay in the files until a method reads them.

    Attributes:
        name: Hugging Face's name.
        parts: the tensors that are joined along `axis`: several if Meta's shards divide the tensor, else one.
        axis: 0 if each part holds some of the rows, 1 if each part holds some columns of every row.
        order: for each row, its index in the files; None if the order is the same. Only entire rows move, so that
            quantised blocks stay unchanged.
    """

    name: str
    parts: tuple[RowSource, ...]
    axis: int = 0
    order: Index | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, outermost axis first."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    @property
    def format(self) -> BlockFormat:
        """The format of the values."""
        return self.parts[0].format

    @property
    def row_memory(self) -> int:
        """Memory that reading one row needs, in bytes, temporary arrays included."""
        parts = [part.row_memory for part in self.parts]
        return sum(parts) if self.axis == 1 else max(parts)

    @property
    def data(self) -> Bytes:
        """The packed bytes, flat, with rows in the files' order."""
        if len(self.parts) == 1:
            return self.parts[0].data
        return self._take_stored(np.arange(self.shape[0])).reshape(-1)

    def release(self) -> None:
        """Lets the system drop the files' bytes from memory; later accesses read the files again."""
        for part in self.parts:
            part.release()

    def take(self, rows: Index) -> Bytes:
        """Returns the packed bytes of the given rows, (rows, bytes per row); each element of a vector is a row."""
        return self._take_stored(rows if self.order is None else self.order[rows])

    def rows(self) -> Bytes:
        """Returns the packed bytes, (rows, bytes per row); a vector is *one* row."""
        rows = self._rows_in_order()
        return rows if len(self.shape) > 1 else rows.reshape(1, -1)

    def to_float32(self) -> NDArray[np.float32]:
        """Returns the values as a new writable array of `shape`."""
        return self.format.decode(self._rows_in_order().reshape(-1)).reshape(self.shape)

    def _rows_in_order(self) -> Bytes:
        rows = self.data.reshape(self.shape[0], -1)
        return rows if self.order is None else rows[self.order]

    def _take_stored(self, rows: Index) -> Bytes:
        """Returns the packed bytes of rows numbered in the files' order."""
        if self.axis == 1:
            return np.concatenate([part.take(rows) for part in self.parts], axis=1)
        if len(self.parts) == 1:
            return self.parts[0].take(rows)
        out = np.empty((len(rows), self.format.size(self.shape) // self.shape[0]), np.uint8)
        first = 0
        for part in self.parts:
            inside = (rows >= first) & (rows < first + part.shape[0])
            if inside.any():
                out[inside] = part.take(rows[inside] - first)
            first += part.shape[0]
        return out
