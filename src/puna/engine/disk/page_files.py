"""`PageFiles`: a folder with one file per page of the cache, which several processes may use at once.

A file is complete or absent: it is written under a temporary name, flushed to the disk and renamed. There are no locks,
so a process that ends at any point leaves at most a temporary file. A reader compares the file with the expected header
and with the checksum, so a damaged file is never used. A file that another process removes during a read stays readable
until it is closed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.errors import StorageError
from puna.files import atomic_write, folder_path, free_bytes, storage_errors

MAGIC = b"puna kv page 1\r\n"
"""Start of a file. The number is the version of this layout: header, checksum, contents of the page."""

CHECKSUM_BYTES = 32

_NAME = re.compile(r"\.?[0-9a-f]{64}\.page(\.\w+\.tmp)?")
"""Names of the files of this module; no other file is ever removed."""

_ABANDONED_SECONDS = 600
"""A temporary file of this age belongs to a process that was killed: writing one page takes milliseconds."""

_SHARE_PER_SCAN = 16
"""The folder is scanned again when 1/16 of the limit was written. A scan takes 3 us per file (ext4)."""


def page_header(fingerprint: bytes, parent: bytes, tokens: tuple[int, ...], size: int) -> bytes:
    """Returns the start of a page's file: all that determines its contents.

    Args:
        fingerprint: identifies the weights and the code that computed the page.
        parent: identity of the page before it, or of the salt; see `puna.engine.pages`.
        tokens: the ids of the page.
        size: bytes of the contents.
    """
    return MAGIC + fingerprint + parent + struct.pack("<QQ", size, len(tokens)) + array("q", tokens).tobytes()


class PageFiles:
    """The files of a folder, whose total size is limited.

    Args:
        folder: created with permissions for its owner only, unless it exists.
        limit: maximum bytes of all files; each further process that writes at the same time may exceed it by 1/16.
            Files also use at most half of the space that the disk has without them.

    Attributes:
        written: number of bytes that were written.
        evictions: number of files that were removed because of the limit.
        rejects: number of files that were removed because they were not the expected ones.

    Raises:
        OSError: the folder cannot be created.
        StorageError: the path is not valid, or every user may write to the folder.
    """

    def __init__(self, folder: str | Path, limit: int) -> None:
        self.folder = folder_path(folder)
        self.limit = limit
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = self.folder.stat().st_mode
        if mode & stat.S_IWOTH:
            raise StorageError(
                f"{self.folder} has permissions {stat.S_IMODE(mode):o}: every user could change the cached prefixes, "
                "and so the answers; choose another folder, or set its permissions to 700"
            )
        self.written = self.evictions = self.rejects = 0
        self._allowance = 0  # bytes that may be written before the next scan

    def path(self, identity: bytes) -> Path:
        """Returns the path of a page's file."""
        return self.folder / f"{identity.hex()}.page"

    def read(self, identity: bytes, header: bytes, size: int) -> NDArray[np.uint8] | None:
        """Returns the contents of a page, (size,); None if there is no file. A damaged file is removed."""
        path = self.path(identity)
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for a writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError:  # a link, or a missing permission
            self.rejects += 1
            _remove(path)
            return None
        try:
            data = _read_verified(descriptor, header, size)
        except OSError:
            data = None
        finally:
            os.close(descriptor)
        if data is None:
            self.rejects += 1
            _remove(path)
        return data

    def write(self, identity: bytes, header: bytes, data: NDArray[np.uint8]) -> None:
        """Writes the file of a page unless it exists; removes the least recently used files if space is needed.

        Raises:
            StorageError: the file cannot be written.
        """
        path = self.path(identity)
        if path.exists():
            return
        with storage_errors(path):
            self._make_space(len(header) + CHECKSUM_BYTES + data.nbytes)
        with atomic_write(path, private=True) as file:
            file.write(header + _checksum(header, data))
            file.write(data.data)
        self.written += len(header) + CHECKSUM_BYTES + data.nbytes

    def remove(self, identities: Iterable[bytes]) -> None:
        """Removes files."""
        for identity in identities:
            _remove(self.path(identity))

    def touch(self, identities: Iterable[bytes]) -> None:
        """Marks files as used, the last one as the most recently used."""
        for identity in identities:
            now = time.time_ns()
            with suppress(OSError):
                os.utime(self.path(identity), ns=(now, now))

    def trim(self, space: int) -> None:
        """Removes abandoned temporary files, and the least recently used files until `space` bytes may be added.

        Raises:
            OSError: the disk is too full for `space` bytes.
        """
        files = sorted(self._scan())
        total = sum(size for _, _, size in files)
        limit = min(self.limit, (total + free_bytes(self.folder)) // 2)
        for _, path, size in files:
            if total + space <= limit:
                break
            _remove(Path(path))
            self.evictions += 1
            total -= size
        if total + space > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _scan(self) -> Iterator[tuple[int, str, int]]:
        """Yields (time of the last use in nanoseconds, path, size) of each file."""
        oldest = time.time() - _ABANDONED_SECONDS
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not _NAME.fullmatch(entry.name):
                    continue
                with suppress(OSError):  # removed by another process
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.endswith(".tmp") and status.st_mtime < oldest:
                        Path(entry.path).unlink()
                    else:
                        yield status.st_mtime_ns, entry.path, status.st_size

    def _make_space(self, size: int) -> None:
        if size > self._allowance:
            space = max(size, self.limit // _SHARE_PER_SCAN)
            self.trim(space)
            self._allowance = space
        self._allowance -= size


def _read_verified(descriptor: int, header: bytes, size: int) -> NDArray[np.uint8] | None:
    """Returns the contents of a page from an open file; None if the file is not exactly the expected one."""
    start = len(header) + CHECKSUM_BYTES
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != start + size:
        return None
    data = np.empty(start + size, np.uint8)
    left = data.data
    while left:
        count = os.readv(descriptor, [left])
        if count == 0:
            return None
        left = left[count:]
    if data[: len(header)].tobytes() != header:
        return None
    return data[start:] if data[len(header) : start].tobytes() == _checksum(header, data[start:]) else None


def _checksum(header: bytes, data: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(header, digest_size=CHECKSUM_BYTES)
    digest.update(data.data)
    return digest.digest()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
