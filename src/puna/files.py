"""Files on disk: written whole or not at all, and small JSON files read with clear errors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from puna.errors import ConfigError, ModelNotFoundError, PunaError, StorageError

JSON_LIMIT = 32 * 2**20
"""Largest JSON file read here, bytes: indexes and configurations in use stay under 1 MB. As Python objects a file takes
some twenty times its size."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and renames it to `path` once it is whole and on the disk."""
    with storage_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with storage_errors(path):
            yield from _filled(handle, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _filled(handle: int, temporary: Path, path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write `path` into a StorageError."""
    try:
        yield
    except PunaError:
        raise
    except OSError as exc:
        raise StorageError(
            f"{path} cannot be written ({exc.strerror or exc}); what was there before is still there. Free space, or "
            "choose another folder"
        ) from exc


def folder_path(path: str | Path) -> Path:
    """The path of a folder to save into; an empty name, which would mean the current folder, raises StorageError."""
    if not str(path):
        raise StorageError("the folder's name is empty; give a folder to save into")
    return Path(path)


def make_folder(path: str | Path) -> Path:
    """Makes a folder, with its parents, unless it is there; raises StorageError where it cannot be."""
    folder = folder_path(path)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _umask() -> int:
    """The permissions new files do without; `mkstemp` makes files that nobody else may read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON, atomically; raises ConfigError where JSON cannot hold it."""
    text = json_bytes(value, path.name)
    with atomic_write(path) as file:
        file.write(text)


def json_bytes(value: Mapping[str, Any], name: str) -> bytes:
    """`value` as indented JSON, to be called `name`; raises ConfigError where JSON cannot hold it."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{name} would hold a value that JSON cannot: {exc}") from exc


def read_json(path: Path, error: type[PunaError]) -> dict[str, Any]:
    """Reads a JSON object; raises `error` naming the file where it is not one."""
    try:
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: no such file")
        size = path.stat().st_size
        if size > JSON_LIMIT:
            raise error(f"{path}: {size} bytes of JSON; the limit is {JSON_LIMIT}. Is this the right file?")
        value = json.loads(path.read_bytes())
    except PunaError:
        raise
    except OSError as exc:
        raise error(f"{path} cannot be read ({exc.strerror}); check its permissions") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{path}: not valid JSON ({exc}); download the file again") from exc
    if not isinstance(value, dict):
        raise error(f"{path}: holds a JSON {type(value).__name__}; an object is needed")
    return value
