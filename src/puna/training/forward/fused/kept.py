"""Memory of the activations that a forward pass keeps for its backward pass, apart from the heap of the C library.

In the heap, they are between values that exist for a moment, whose memory then has the wrong sizes for the next layers.
"""

from __future__ import annotations

import math
import mmap
import weakref
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 16 << 20
"""Bytes of a block; larger tensors have a block of their own. The end of a block is often unused."""

_ALIGNMENT = 64


class Memory(Protocol):
    """Where the results of a layer are."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns a tensor with any values."""
        ...

    def keep(self, value: Tensor) -> Tensor:
        """Returns a tensor of this memory with the same values."""
        ...


class Heap:
    """Memory of PyTorch, for results that are not kept."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:  # noqa: D102
        return torch.empty(shape, dtype=dtype)

    def keep(self, value: Tensor) -> Tensor:  # noqa: D102
        return value


class Blocks:
    """Blocks that hold tensors one after another, and are used again when all tensors of a block are gone."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._current: NDArray[np.uint8] | None = None
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:  # noqa: D102
        count = math.prod(shape)
        size = -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        if not count:
            return torch.empty(shape, dtype=dtype)
        if size > _BLOCK:
            return _tensor(_bytes(_mapped(size)), 0, shape, dtype)
        if self._current is None or self._used + size > _BLOCK:
            self._current, self._used = self._block(), 0
        result = _tensor(self._current, self._used, shape, dtype)
        self._used += size
        return result

    def keep(self, value: Tensor) -> Tensor:  # noqa: D102
        return self.empty(tuple(value.shape), value.dtype).copy_(value)

    def finish(self) -> None:
        """Ends a forward pass, so that its last block is free again after the backward pass."""
        self._current = None

    def _block(self) -> NDArray[np.uint8]:
        self._current = None  # may be free now
        memory = self._free.pop() if self._free else _mapped(_BLOCK)
        block = _bytes(memory)
        weakref.finalize(block, self._free.append, memory).atexit = False  # its tensors refer to `block`
        return block


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _bytes(memory: mmap.mmap) -> NDArray[np.uint8]:
    return np.frombuffer(memory, np.uint8)


def _tensor(block: NDArray[np.uint8], start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor with a storage of its own, since views of one tensor share the count of changes in place."""
    return torch.frombuffer(block, dtype=dtype, count=math.prod(shape), offset=start).view(shape)
