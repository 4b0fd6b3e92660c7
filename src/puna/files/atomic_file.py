"""Atomic writes of files, folders to save into, and errors of the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from puna.errors import PunaError, StorageError, show


@contextmanager
def atomic_write(path: Path, private: bool = False) -> Iterator[IO[bytes]]:
    """Opens a temporary file next to `path`; renames it to `path` when it is complete and on the disk.

    Args:
        private: only the file's owner may read it.
    """
    with storage_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if not private:  # mkstemp creates private files
                temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Returns the process's umask: the permission bits that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Context manager for writing `path`: turns an OSError into a StorageError."""
    try:
        yield
    except PunaError:
        raise
    except OSError as exc:
        raise StorageError(
            f"{path} cannot be written ({exc.strerror or exc}); the previous content is unchanged. Free space, or "
            "choose another folder"
        ) from exc


_LONGEST_NAME = 255
"""Maximum length of the name of a file, in bytes, on all usual file systems."""


def folder_path(path: str | Path) -> Path:
    """Returns the path of a folder to save into; raises StorageError for "" and for names that no file can have."""
    if not isinstance(path, str | Path):
        raise StorageError(f"the path to save to is {show(path)}; it must be a text or a Path")
    if not str(path):
        raise StorageError("the folder's name is empty; give a folder to save into")
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        encoded = b"\0"
    if b"\0" in encoded:
        raise StorageError(f"{show(str(path))} cannot be the name of a file; choose another name")
    longest = max(map(len, encoded.split(b"/")))
    if longest > _LONGEST_NAME:
        raise StorageError(f"File name too long: {show(str(path))} has {longest} bytes; the limit is {_LONGEST_NAME}")
    return Path(path)


def make_folder(path: str | Path) -> Path:
    """Creates a folder and its parents unless it exists; raises StorageError if that is impossible."""
    folder = folder_path(path)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_bytes(path: Path) -> int:
    """Returns the free bytes of the disk that will hold `path`, whose folders may not exist yet."""
    return shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.exists())).free


@contextmanager
def make_parents(folder: Path, destination: Path) -> Iterator[None]:
    """Creates a folder and its parents; if the block fails, removes the folders created here if they are empty."""
    with storage_errors(destination):
        created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with storage_errors(destination):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in created:
            with suppress(OSError):
                path.rmdir()
        raise
