"""`model_fingerprint`: a digest of all that determines the keys and values of given tokens; `open_disk_cache` uses it.

Pages of the disk cache are found under this digest, so two models must never share it. It therefore covers every byte
of the weights: a checkpoint that was trained further has the same shapes, and a file that was edited in place may have
its old size and time of modification. The tokenizer is not part of it, because pages are found by token ids.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from puna import __version__
from puna.backend import Backend
from puna.engine.disk.cache import DiskCache
from puna.errors import RequestError, StorageError, show
from puna.files import folder_path
from puna.native.library import machine

if TYPE_CHECKING:
    from puna.checkpoint import Checkpoint, Weight

DEFAULT_DISK_BYTES = 8 << 30
"""Maximum bytes of the files if `LLM` has no argument `prefix_cache_bytes`."""

_MAX_THREADS = 4
"""Each thread holds one tensor in memory. BLAKE2 reads 1.3 GB/s per thread on an EPYC with AVX-512."""


def open_disk_cache(
    folder: str | Path | None, limit: int, checkpoint: Checkpoint, backend: Backend
) -> DiskCache | None:
    """Returns the disk cache of a model; None without a folder or, with a warning, if the folder cannot be created.

    Raises:
        RequestError: `limit` is not a whole number, or is given without a folder.
        StorageError: every user may write to the folder, or `limit` is less than two pages.
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise RequestError(f"prefix_cache_bytes is {show(limit)}; it must be a whole number")
    if folder is None:
        if limit != DEFAULT_DISK_BYTES:
            raise RequestError(
                f"prefix_cache_bytes is {limit}, but there is no prefix_cache_dir, whose size it limits; give a folder "
                "as prefix_cache_dir, or omit prefix_cache_bytes"
            )
        return None
    if not isinstance(folder, str | Path):
        raise StorageError(f"prefix_cache_dir is {show(folder)}; it must be a text, a Path or None")
    path = folder_path(folder)
    try:
        return DiskCache(path, limit, model_fingerprint(checkpoint, backend), backend)
    except StorageError:
        raise
    except OSError as exc:
        is_file = isinstance(exc, FileExistsError)
        problem = "is a file, not a folder" if is_file else f"cannot be created ({exc.strerror})"
        warnings.warn(
            f"prefix_cache_dir: {path} {problem}; prefixes are kept in memory only",
            stacklevel=4,
        )
        return None


def model_fingerprint(checkpoint: Checkpoint, backend: Backend) -> bytes:
    """Returns a digest of 32 bytes of the checkpoint's weights and configuration, and of the code that computes."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(json.dumps([__version__, backend.numerics, checkpoint.config.to_dict()], sort_keys=True).encode())
    with ThreadPoolExecutor(min(_MAX_THREADS, machine().physical_cores)) as executor:
        for weight_digest in executor.map(_weight_digest, *zip(*sorted(checkpoint.tensors.items()), strict=True)):
            digest.update(weight_digest)
    return digest.digest()


def _weight_digest(name: str, weight: Weight) -> bytes:
    order = b"" if weight.order is None else weight.order.tobytes()
    description = json.dumps([name, weight.format.name, weight.shape]).encode()
    digest = hashlib.blake2b(description + hashlib.blake2b(order).digest(), digest_size=32)
    digest.update(weight.data.data)
    weight.release()
    return digest.digest()
