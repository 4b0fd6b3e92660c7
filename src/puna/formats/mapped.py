"""Files as read-only arrays of bytes, and what kind of file the first bytes say it is.

Nothing is read until it is touched, so opening a checkpoint costs its header. A file that somebody cuts short while
it is mapped cannot be guarded against; checkpoints are replaced by renaming, never rewritten in place.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError, ModelNotFoundError

Container = Literal["gguf", "safetensors", "torch_zip", "torch_legacy"]

_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""How `torch.save` began before 1.6: a pickle, protocol 2, of the number 0x1950a86a20f9469cfc6c."""


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of `path`, read-only, mapped.

    Raises:
        ModelNotFoundError: there is nothing at `path`.
        CheckpointError: it is a folder or a device, is empty, or may not be read.
    """
    try:
        if not path.exists():
            raise ModelNotFoundError(f"{path}: no such file")
        if not path.is_file():
            raise CheckpointError(f"{path}: a {'folder' if path.is_dir() else 'special file'}; a plain file is needed")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path}: the file is empty; download it again")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as exc:
        if isinstance(exc, ModelNotFoundError):
            raise
        raise CheckpointError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def release(view: NDArray[np.uint8]) -> None:
    """Lets the system forget the pages of a mapped file under `view`: they are read again where they are touched again.

    An array that is no view of a mapped file is left alone.
    """
    base: object = view
    while base is not None and not isinstance(base, mmap.mmap):
        # as_strided puts an object between a view and its array that is no array itself.
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = view.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, last = -(-start // mmap.PAGESIZE), (start + view.nbytes) // mmap.PAGESIZE  # whole pages
    if view.flags.c_contiguous and last > first:
        base.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def sniff(path: Path) -> Container:
    """The kind of tensor file at `path`, told from its first bytes, never from its name."""
    data = map_file(path)
    start = data[:16].tobytes()
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "torch_zip"
    if start == _TORCH_LEGACY + start[len(_TORCH_LEGACY) :]:
        return "torch_legacy"
    # safetensors has no magic number: a length of eight bytes, then a JSON object.
    if len(data) >= 9 and start[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(
        f"{path}: begins with {start[:8].hex(' ')}, which is neither GGUF, safetensors nor PyTorch's zip; "
        "is it complete, and not a placeholder such as a Git LFS pointer?"
    )
