"""A file that is read at any position, and the decoding of its text.

Bytes are copied by a system call, because access to the map of a file that was truncated meanwhile ends the process.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from puna.errors import DataError, show_bytes
from puna.files import reading_errors
from puna.training.batch import Source
from puna.training.data.readers.rows import ROW_LIMIT

BOM = b"\xef\xbb\xbf"
"""Byte-order mark of UTF-8, which some programs write at the start of a file."""


class DataFile:
    """An open file.

    Attributes:
        path: the file.
        start: number of bytes of the byte-order mark, 0 or 3.
        size: of the file, in bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading_errors(DataError):
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
        self.start = len(BOM) if self.read(0, len(BOM)) == BOM else 0

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` to `stop`, or to the end of the file; raises DataError."""
        with reading_errors(DataError):
            return os.pread(self._descriptor, stop - start, start)

    def read_row(self, start: int, stop: int, source: Source, hint: str) -> str:
        """Returns the text of a row.

        Args:
            hint: what to do if the row is too large.

        Raises:
            DataError: the row has more than ROW_LIMIT bytes, or is not UTF-8 text.
        """
        if stop - start > ROW_LIMIT:
            raise DataError(
                f"{source}: the row has {show_bytes(stop - start)}; the limit is {show_bytes(ROW_LIMIT)}. {hint}"
            )
        return decode(self.read(start, stop), source)


def decode(data: bytes, source: Source) -> str:
    """Returns the text of UTF-8 bytes.

    Raises:
        DataError: the bytes are not UTF-8, or contain a zero.
    """
    if b"\0" in data:
        raise DataError(
            f"{source}: byte {data.index(0) + 1} of the row is zero, so the file was damaged or is not UTF-8 text; "
            "write it again"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise DataError(
            f"{source}: byte {exc.start + 1} of the row (0x{data[exc.start]:02x}) is not UTF-8; convert the file, for "
            "example with iconv -f LATIN1 -t UTF-8"
        ) from exc
