"""`Weight`: one tensor of a model, under Hugging Face's name and in its row order, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.formats.blocks import BlockFormat, StoredTensor
from puna.formats.mapped import release


@dataclass(frozen=True)
class Weight:
    """A tensor that a model uses; nothing is read until `rows` or `to_float32` is called.

    Attributes:
        name: Hugging Face's.
        stored: the tensor as the file has it.
        order: stored row of each row, where the file keeps another order; None where it is the same. Blocks run along
            rows, so that whole rows move and quantised ones keep their bits.
    """

    name: str
    stored: StoredTensor
    order: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, outermost axis first."""
        return self.stored.shape

    @property
    def format(self) -> BlockFormat:
        """How its values are packed."""
        return self.stored.format

    @property
    def data(self) -> NDArray[np.uint8]:
        """The packed bytes, flat, in the file's order of rows; a view of the file where its order is the tensor's."""
        return self.stored.data

    def release(self) -> None:
        """Gives back the memory in which the file's bytes lie; they are read again when they are asked for again."""
        release(self.stored.raw)

    def rows(self) -> NDArray[np.uint8]:
        """The packed bytes, (rows, bytes per row); a vector is one row. A view of the file unless rows must move."""
        rows = self._ordered()
        return rows if len(self.shape) > 1 else rows.reshape(1, -1)

    def to_float32(self) -> NDArray[np.float32]:
        """The values, unpacked into a new writable array of `shape`."""
        return self.format.decode(self._ordered().reshape(-1)).reshape(self.shape)

    def _ordered(self) -> NDArray[np.uint8]:
        rows = self.stored.data.reshape(self.shape[0], -1)
        return rows if self.order is None else rows[self.order]
