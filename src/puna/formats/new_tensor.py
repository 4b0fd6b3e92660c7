"""A tensor on its way into a file: name, format and shape at once, its bytes when their turn comes.

The writers of this room ask for sizes first and for bytes last, so that nobody ever holds more than a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats.blocks import BlockFormat

Buffer = bytes | bytearray | memoryview | NDArray[Any]
Producer = Callable[[], Buffer | Iterable[Buffer]]


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        shape: outermost axis first.
        data: its bytes in C order, or a function that makes them, whole or piece by piece, when their turn comes.
    """

    name: str
    format: BlockFormat
    shape: tuple[int, ...]
    data: Buffer | Producer

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return self.format.size(self.shape)

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, in order.

        Raises:
            CheckpointError: they are not as many as the shape takes.
        """
        data = self.data() if callable(self.data) else self.data
        whole = isinstance(data, (bytes, bytearray, memoryview, np.ndarray))
        buffers: Iterable[Any] = (data,) if whole else data
        found = 0
        for buffer in buffers:
            view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
            found += view.nbytes
            if found > self.size:
                break
            if view.nbytes:
                yield view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        if found != self.size:
            raise CheckpointError(f"tensor {self.name!r} has {found} bytes; {self.shape} takes {self.size}")
