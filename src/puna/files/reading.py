"""Reads complete files of models into memory, with limits on their size and clear errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puna.errors import ArgumentError, ModelNotFoundError, PunaError, show, show_path


@contextmanager
def reading_errors(error: type[PunaError]) -> Iterator[None]:
    """Context manager and decorator for reading files: turns an OSError, such as a missing permission, into `error`."""
    try:
        yield
    except PunaError:
        raise
    except OSError as exc:
        blocked = _blocked_folder(exc.filename) if isinstance(exc, PermissionError) else None
        path = blocked or exc.filename or "the file"
        raise error(f"{path}: cannot be read ({exc.strerror or exc}); check the path and its permissions") from exc


def _blocked_folder(path: object) -> Path | None:
    """Returns the outermost folder of `path` that this process may not enter; None if it may enter all of them."""
    parents = Path(path).parents if isinstance(path, str | os.PathLike) else ()
    return next((folder for folder in reversed(parents) if not os.access(folder, os.X_OK)), None)


def has_file(path: Path, error: type[PunaError]) -> bool:
    """Whether a file exists.

    Ignoring an optional file would change the stop ids, special tokens or templates of the model. So a link to a
    missing file (as in a snapshot of the hub's cache after an interrupted download), a folder or a device of this name
    raises `error`, as does a file whose existence cannot be determined.
    """
    with reading_errors(error):
        if path.is_file():
            return True
        if not os.path.lexists(path):
            return False
        if path.is_symlink() and not path.exists():
            raise error(
                f"{path} is a link to {show_path(path.readlink())}, which does not exist; download the file again, "
                "or delete the link if the model has no such file"
            )
        raise error(f"{path}: a {'folder' if path.is_dir() else 'special file'}; give a regular file")


def path_argument(path: object, name: str = "the path") -> Path:
    """Returns the path that an argument names.

    Raises:
        ArgumentError: `path` is neither a text nor a path.
    """
    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike):
        raise ArgumentError(f"{name} is {show(path)}; it must be a text or a Path")
    return Path(path)


def read_file(path: Path, error: type[PunaError], limit: int) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
        ModelNotFoundError: there is no such file.
        error: the file cannot be read, is not a regular file, or has more than `limit` bytes.
    """
    with reading_errors(error):
        if not has_file(path, error):
            raise ModelNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit) + 1)  # allocates this size at once
    if len(data) > limit:
        raise error(f"{path}: the file has more than {limit} bytes, the limit here. Is this the right file?")
    return data
