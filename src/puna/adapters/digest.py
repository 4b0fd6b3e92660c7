"""`adapter_digest`: a hash of the contents of an adapter. Cached keys and values are shared only if it is equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from puna.adapters.adapter import Adapter


def adapter_digest(adapter: Adapter) -> str:
    """Returns a hash of all values of an adapter, as hexadecimal digits; its path and its notes do not matter."""
    changes = {
        name: getattr(adapter, name)
        for name in ("kind", "low_rank", "scalings", "token_rows", "bottlenecks", "replaced", "prompt", "prefix")
    }
    result = hashlib.sha256()
    for part in _parts(changes):
        result.update(part)
    return result.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    """Yields bytes that differ for different values."""
    if isinstance(value, Mapping):
        yield f"{len(value)} entries".encode()
        for name in sorted(value):
            yield f"{name!r}: ".encode()
            yield from _parts(value[name])
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype.str}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif hasattr(value, "take"):  # a tensor whose bytes are in a file
        yield f"{value.format.name}{value.shape}".encode()
        yield value.take(np.arange(value.shape[0])).tobytes()
    elif is_dataclass(value):
        for item in fields(value):
            yield f"{item.name}: ".encode()
            yield from _parts(getattr(value, item.name))
    else:
        yield repr(value).encode()
