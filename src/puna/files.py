"""Files on disk: written whole or not at all, and small JSON files read with clear errors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from puna.errors import ModelNotFoundError, PunaError

JSON_LIMIT = 32 * 2**20
"""Largest JSON file read here, bytes: indexes and configurations in use stay under 1 MB. As Python objects a file takes
some twenty times its size."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it to `path` once it is whole and on the disk."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The permissions new files do without; `mkstemp` makes files that nobody else may read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: Path, error: type[PunaError]) -> dict[str, Any]:
    """Reads a JSON object; raises `error` naming the file where it is not one."""
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    if size > JSON_LIMIT:
        raise error(f"{path}: {size} bytes of JSON; the limit is {JSON_LIMIT}. Is this the right file?")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise error(f"{path}: not valid JSON ({exc}); download the file again") from exc
    if not isinstance(value, dict):
        raise error(f"{path}: holds a JSON {type(value).__name__}; an object is needed")
    return value
