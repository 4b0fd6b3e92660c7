"""`NewTensor`: a tensor to be written, whose name, format and shape are known before its bytes.

The writers of this package need all sizes first and read the bytes last, one piece at a time, so that a file larger
than memory can be written.
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
        data: the bytes in C order, or a function that returns them, as one buffer or as an iterable of buffers; the
            writer calls the function when it reaches the tensor.
    """

    name: str
    format: BlockFormat
    shape: tuple[int, ...]
    data: Buffer | Producer

    @property
    def size(self) -> int:
        """The tensor's size in bytes."""
        return self.format.size(self.shape)

    def pieces(self) -> Iterator[memoryview]:
        """Yields the tensor's bytes, in order; raises CheckpointError if they are more or fewer than `size`."""
        data = self.data() if callable(self.data) else self.data
        is_buffer = isinstance(data, (bytes, bytearray, memoryview, np.ndarray))
        buffers: Iterable[Any] = (data,) if is_buffer else data
        count = 0
        for buffer in buffers:
            view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
            count += view.nbytes
            if count > self.size:
                break
            if view.nbytes:
                yield view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        if count != self.size:
            raise CheckpointError(f"tensor {self.name!r} has {count} bytes; the shape {self.shape} needs {self.size}")
