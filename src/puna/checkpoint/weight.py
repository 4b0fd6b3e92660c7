"""`Weight`: one tensor of a model, under Hugging Face's name and in its row order, whatever files it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.validation import Named
from puna.formats.blocks import BlockFormat, StoredTensor
from puna.formats.grouped import GroupedMatrix

Index = NDArray[np.intp]
Bytes = NDArray[np.uint8]


class Rows(Named, Protocol):
    """A tensor whose rows can be asked for; `Weight` is one. A vector is rows of one value."""

    @property
    def widest(self) -> int:
        """Most bytes that a row needs on its way from the file, temporary values included."""
        ...

    def take(self, rows: Index) -> Bytes:
        """The packed bytes of some rows, (rows, bytes per row)."""
        ...

    def release(self) -> None:
        """Gives back the mapped memory read so far."""
        ...


@dataclass(frozen=True)
class Weight:
    """A tensor that a model uses; nothing is read until its bytes or values are asked for.

    Attributes:
        name: Hugging Face's.
        parts: the tensor as the files have it: whole, or in parts that lie one after the other along `axis`. What GPTQ
            or AWQ packed is a part in the format it can be had in.
        axis: 0, rows of one part follow those of another; 1, each part holds some columns of every row.
        order: stored row of each row, where the files keep another order; None where it is the same. Blocks run along
            rows, so that whole rows move and quantised ones keep their bits.
    """

    name: str
    parts: tuple[StoredTensor | GroupedMatrix, ...]
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
        """How its values are packed."""
        return self.parts[0].format

    @property
    def widest(self) -> int:
        """Most bytes that a row needs on its way from the file: those it has."""
        return self.format.size(self.shape) // self.shape[0]

    @property
    def data(self) -> Bytes:
        """The packed bytes, flat, in the files' order of rows; a view of the file where it holds them so."""
        if len(self.parts) == 1:
            return self.parts[0].data
        return self._stored(np.arange(self.shape[0])).reshape(-1)

    def release(self) -> None:
        """Gives back the memory in which the files' bytes lie; they are read again when they are asked for again."""
        for part in self.parts:
            part.release()

    def take(self, rows: Index) -> Bytes:
        """The packed bytes of some rows, (rows, bytes per row); a vector is rows of one value."""
        return self._stored(rows if self.order is None else self.order[rows])

    def rows(self) -> Bytes:
        """The packed bytes, (rows, bytes per row); a vector is one row. A view of the file unless rows must move."""
        rows = self._ordered()
        return rows if len(self.shape) > 1 else rows.reshape(1, -1)

    def to_float32(self) -> NDArray[np.float32]:
        """The values, unpacked into a new writable array of `shape`."""
        return self.format.decode(self._ordered().reshape(-1)).reshape(self.shape)

    def _ordered(self) -> Bytes:
        rows = self.data.reshape(self.shape[0], -1)
        return rows if self.order is None else rows[self.order]

    def _stored(self, rows: Index) -> Bytes:
        """The bytes of the stored rows `rows`."""
        if self.axis == 1:
            return np.concatenate([part.take(rows) for part in self.parts], axis=1)
        if len(self.parts) == 1:
            return self.parts[0].take(rows)
        out = np.empty((len(rows), self.widest), np.uint8)
        first = 0
        for part in self.parts:
            here = (rows >= first) & (rows < first + part.shape[0])
            if here.any():
                out[here] = part.take(rows[here] - first)
            first += part.shape[0]
        return out
