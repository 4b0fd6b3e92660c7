"""The memory of all values that the layers keep for the backward pass: one piece, apart from the heap of the C library.

In the heap, kept values would lie between values that a layer needs only for a moment. When these are freed, the gaps
between the kept values are too small for the tensors of the next layers: a fifth of the memory of the process was free,
but could not be used.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_ALIGNMENT = 64
_HUGE_PAGE = 2 << 20


def block_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Returns the bytes of a tensor in a block."""
    return -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


class Block:
    """Memory for the tensors of one layer.

    The tensors share autograd's version counter. All of them are filled before autograd saves one of them, because a
    later change would be an error in the backward pass.

    Args:
        memory: bytes. Tensors that do not fit have memory of their own.
    """

    def __init__(self, memory: Tensor | None = None) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8) if memory is None else memory
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns a tensor with any values."""
        size = block_bytes(shape, dtype)
        if self._used + size > len(self._bytes):
            return torch.empty(shape, dtype=dtype)
        part = self._bytes[self._used : self._used + math.prod(shape) * dtype.itemsize]
        self._used += size
        return part.view(dtype).view(shape)

    def keep(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the values in a type: in the block, if they fit into what is left of it."""
        is_here = value.untyped_storage().data_ptr() == self._bytes.untyped_storage().data_ptr()
        fits = self._used + block_bytes(tuple(value.shape), dtype) <= len(self._bytes)
        if not fits or (is_here and value.dtype == dtype):
            return value.to(dtype)
        return self.empty(tuple(value.shape), dtype).copy_(value)


class Blocks:
    """Memory for the blocks of a forward pass. The next forward pass reuses it if no tensor in it exists any more."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._users: StorageWeakRef | None = None

    def take(self, sizes: list[int]) -> list[Block]:
        """Returns blocks of these sizes."""
        total = sum(sizes)
        if not total:
            return [Block() for _ in sizes]
        in_use = self._users is not None and not self._users.expired()  # type: ignore[no-untyped-call]
        if self._memory is None or in_use or len(self._memory) < total:
            self._memory = None  # before more is taken
            self._memory = mapped(total)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8, count=total)
        self._users = StorageWeakRef(whole.untyped_storage())  # type: ignore[no-untyped-call]
        return [Block(part.data) for part in torch.split(whole, sizes)]  # `data`: a version counter of its own

    def free(self) -> None:
        """Frees the memory, once no tensor in it exists any more. `take` maps new memory."""
        self._memory = None


def mapped(size: int) -> mmap.mmap:
    """Returns memory of at least `size` bytes, apart from the heap, which the system gets back with the last tensor."""
    size = -(-size // _HUGE_PAGE) * _HUGE_PAGE
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without transparent huge pages; the memory is usable
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
