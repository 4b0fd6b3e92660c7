"""Maps files into memory as read-only arrays of bytes, and detects their format from the first bytes.

The system reads a page of a mapped file when it is accessed, so opening a checkpoint only reads its header. Reading a
file that is truncated while it is mapped crashes the process: replace a checkpoint by renaming, never in place.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError, ModelNotFoundError

Container = Literal["gguf", "safetensors", "torch_zip", "torch_legacy"]

_TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
"""Start of `torch.save`'s format before PyTorch 1.6: the number 0x1950a86a20f9469cfc6c, pickled with protocol 2."""


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
            raise CheckpointError(f"{path}: a {'folder' if path.is_dir() else 'special file'}; a plain file is needed")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path}: the file is empty; download it again")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as exc:
        if isinstance(exc, ModelNotFoundError):
            raise
        if exc.errno == errno.ENOMEM:
            raise CheckpointError(
                f"{path}: the system refused to map {path.stat().st_size / 1e6:.1f} MB into memory; raise the limit "
                "of this process (ulimit -v)"
            ) from exc
        raise CheckpointError(f"{path}: cannot be read ({exc.strerror or exc})") from exc


def release(view: NDArray[np.uint8]) -> None:
    """Lets the system drop the pages of a mapped file under `view` from memory; later accesses read the file again.

    Does nothing for an array that is not a view of a mapped file.
    """
    base: object = view
    while base is not None and not isinstance(base, mmap.mmap):
        # Between a view and its array, as_strided inserts a helper object that is not an array.
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = view.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data
    first, last = -(-start // mmap.PAGESIZE), (start + view.nbytes) // mmap.PAGESIZE  # pages entirely inside the view
    if view.flags.c_contiguous and last > first:
        base.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def sniff(path: Path) -> Container:
    """Returns the format of a tensor file, detected from its first bytes instead of its name."""
    data = map_file(path)
    start = data[:16].tobytes()
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "torch_zip"
    if start.startswith(_TORCH_LEGACY):
        return "torch_legacy"
    # safetensors has no magic number: a length of eight bytes, then a JSON object.
    if len(data) >= 9 and start[8:9] == b"{":
        return "safetensors"
    raise CheckpointError(
        f"{path}: begins with {start[:8].hex(' ')}, which is neither GGUF, safetensors nor PyTorch's zip. Check that "
        "the file is complete and not a placeholder such as a Git LFS pointer"
    )
