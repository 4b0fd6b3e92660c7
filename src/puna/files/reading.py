"""Reads files of models whole, with limits on their size and clear errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from puna.errors import ModelNotFoundError, PunaError


@contextmanager
def reading_errors(error: type[PunaError]) -> Iterator[None]:
    """Context manager and decorator for reading files: turns an OSError, such as a missing permission, into `error`."""
    try:
        yield
    except PunaError:
        raise
    except OSError as exc:
        path = exc.filename or "the file"
        raise error(f"{path}: cannot be read ({exc.strerror or exc}); check the path and its permissions") from exc


def read_file(path: Path, error: type[PunaError], limit: int) -> bytes:
    """Returns the bytes of a plain file.

    Raises:
        ModelNotFoundError: there is no such file.
        error: the file cannot be read, is not a plain file, or has more than `limit` bytes.
    """
    with reading_errors(error):
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"{path}: more than {limit} bytes; the limit of such files is {limit}. Is this the right file?")
    return data
