"""Maps files into memory as read-only arrays of bytes, and detects their format from the first bytes.

An array of a mapped file describes a range of the file without reading it. Accessing the bytes of the array after the
file has been truncated would crash the process (SIGBUS), so `read_bytes` copies them with a system call, which returns
an error instead.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError, ModelNotFoundError, show_bytes

Container = Literal["gguf", "safetensors", "torch_zip", "torch_legacy"]

_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""Start of `torch.save`'s format before PyTorch 1.6: the number 0x1950a86a20f9469cfc6c, pickled with protocol 2."""


class _MappedFile(mmap.mmap):
    """A mapped file, with the descriptor from which `read_bytes` reads."""

    descriptor = -1  # mapping the file or duplicating its descriptor may fail
    path: Path

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit, the name os may be None
        if self.descriptor >= 0:
            close(self.descriptor)


def map_file(path: Path) -> NDArray[np.uint8]:
    """Returns the bytes of a file, mapped and read-only.

    Raises:
        ModelNotFoundError: `path` does not exist.
        CheckpointError: `path` is a folder or a device, is empty, or cannot be read.
    """
    try:
        if not path.exists():
            raise ModelNotFoundError(f"{path}: no such file")
        if not path.is_file():
            raise CheckpointError(f"{path}: a {'folder' if path.is_dir() else 'special file'}; give a regular file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path}: the file is empty; download it again")
            mapped = _MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
            mapped.path, mapped.descriptor = path, os.dup(file.fileno())
        return np.frombuffer(mapped, np.uint8)
    except OSError as exc:
        if isinstance(exc, ModelNotFoundError):
            raise
        if exc.errno == errno.ENOMEM:
            raise CheckpointError(
                f"{path}: the system refused to map {show_bytes(path.stat().st_size)} into memory; raise the limit "
                "of this process (ulimit -v)"
            ) from exc
        raise CheckpointError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def _file_of(view: NDArray[np.uint8]) -> _MappedFile | None:
    """Returns the mapped file of a view; None for any other array."""
    base: object = view
    while base is not None and not isinstance(base, _MappedFile):
        # Between a view and its array, as_strided inserts a helper object that is not an array.
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def _offset(mapped: _MappedFile, view: NDArray[np.uint8]) -> int:
    return view.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data


def read_bytes(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns a copy of a view of a mapped file; any other array is returned unchanged.

    A view that is not contiguous keeps its strides: the range of the file that encloses the view is copied.

    Raises:
        CheckpointError: the file was truncated after it was opened, or cannot be read.
    """
    mapped = _file_of(view)
    if mapped is None or view.size == 0:
        return view
    if not view.flags.c_contiguous:
        steps = [(extent - 1) * stride for extent, stride in zip(view.shape, view.strides, strict=True)]
        before, after = -sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps)
        start = _offset(mapped, view)
        span = read_bytes(np.frombuffer(mapped, np.uint8)[start - before : start + after + 1])
        return np.lib.stride_tricks.as_strided(span[before:], view.shape, view.strides)
    copy = np.empty(view.shape, np.uint8)
    left, position = copy.reshape(-1).data, _offset(mapped, view)
    try:
        while left:
            size = os.preadv(mapped.descriptor, [left], position)
            if size == 0:
                raise CheckpointError(
                    f"{mapped.path}: the file ends at byte {position}; it was truncated while it was read. Replace a "
                    "checkpoint by renaming, never in place"
                )
            left, position = left[size:], position + size
    except OSError as exc:
        raise CheckpointError(f"{mapped.path}: cannot be read ({exc.strerror or exc})") from exc
    return copy


def release(view: NDArray[np.uint8]) -> None:
    """Lets the system drop the pages of a mapped file under `view` from memory; later accesses read the file again.

    Does nothing for an array that is not a view of a mapped file.
    """
    mapped = _file_of(view)
    if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = _offset(mapped, view)
    first, last = -(-start // mmap.PAGESIZE), (start + view.nbytes) // mmap.PAGESIZE  # pages entirely inside the view
    if view.flags.c_contiguous and last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def sniff(path: Path) -> Container:
    """Returns the format of a tensor file, detected from its first bytes instead of its name."""
    data = map_file(path)
    start = read_bytes(data[:16]).tobytes()
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "torch_zip"
    if start.startswith(_TORCH_LEGACY):
        return "torch_legacy"
    # safetensors has no magic number: a length of eight bytes, then a JSON object.
    if start[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(
        f"{path}: begins with {_readable(start)}, which is neither GGUF, safetensors nor PyTorch's zip. Check that "
        "the file is complete and not a placeholder such as a Git LFS pointer"
    )


def _readable(start: bytes) -> str:
    """Returns the first bytes of a file, as text if they are ASCII."""
    return repr(start.decode()) if start and start.isascii() and b"\0" not in start else start[:8].hex(" ")
