"""`DiskCache`: keeps the pages of prefixes on the disk, so that later processes read them instead of computing them.

The thread that steps the engine reads pages, which it needs for the next step; a thread of the cache writes them. A
failure of the disk never changes or ends an answer: a page that cannot be read is computed, and a page that cannot be
written is forgotten.
"""

from __future__ import annotations

import _thread
import atexit
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Backend
from puna.engine.disk.page_files import PageFiles, page_header
from puna.errors import PunaError, StorageError

_QUEUE_BYTES = 64 << 20
"""Maximum bytes of pages that wait for the writing thread; pages above it are saved when they are used again."""

_CLOSE_SECONDS = 5.0
"""Maximum time that closing waits for the writing thread: 12 MB/s are enough for a full queue."""

_POLL_SECONDS = 0.001

_WEIGHT = 0.25
"""Weight of the latest page in the measured time of reading, so that one slow access does not stop reading.

A page that is not read, because computing is faster, counts as 0 seconds: reading is tried again after some pages."""


class DiskCache:
    """The pages on the disk. Not thread-safe: only the thread that steps the engine may use it.

    Args:
        folder: see `PageFiles`.
        limit: maximum bytes of the files.
        fingerprint: digest of everything that determines the contents of a page, except its tokens and its salt. Pages
            with another fingerprint are not found.
        backend: holds the pages.

    Attributes:
        hits: number of pages that were read.
        saved: number of pages that were given to the writing thread.

    Raises:
        OSError: the folder cannot be created.
        StorageError: the folder cannot be used, or `limit` is less than two pages.
    """

    def __init__(self, folder: str | Path, limit: int, fingerprint: bytes, backend: Backend) -> None:
        size = backend.page_bytes
        if limit < 2 * size:
            raise StorageError(
                f"prefix_cache_bytes is {limit} bytes, but the folder must have space for two pages of {PAGE} tokens, "
                f"which have {2 * size} bytes for this model; set it to {2 * size} or more"
            )
        self.fingerprint = fingerprint
        self.hits = 0
        self.saved = 0
        self._backend = backend
        self._files = PageFiles(folder, limit)
        self._writer = _Writer(self._files)
        if not os.access(folder, os.W_OK | os.X_OK):
            self._writer.fail(f"no permission to write to the folder {folder}")
        self._reading = 0.0  # seconds to read a page, averaged

    def __del__(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.stop()

    def statistics(self) -> dict[str, int]:
        """Returns the numbers of the disk in `Statistics`."""
        files = self._files
        values = {"hits": self.hits, "bytes": files.written, "evictions": files.evictions, "rejects": files.rejects}
        return {f"disk_{name}": value for name, value in values.items()}

    def load(self, identity: bytes, parent: bytes, tokens: tuple[int, ...], seconds: float) -> NDArray[np.uint8] | None:
        """Returns the contents of a page; None if it is not on the disk, or reading pages takes more than `seconds`."""
        if self._reading > seconds:
            self._reading -= _WEIGHT * self._reading
            return None
        started = time.perf_counter()
        data = self._files.read(identity, self._header(parent, tokens), self._backend.page_bytes)
        if data is not None:
            self._reading += _WEIGHT * (time.perf_counter() - started - self._reading)
            self.hits += 1
        return data

    def restore(self, page: int, data: NDArray[np.uint8]) -> None:
        """Writes contents that `load` has returned to a page of the backend."""
        self._backend.write_pages([page], data.reshape(1, -1))

    def save(self, page: int, identity: bytes, parent: bytes, tokens: tuple[int, ...]) -> bool:
        """Copies a page for the writing thread; returns False if too many pages wait for it."""
        if self._writer.is_full(self._backend.page_bytes):
            return False
        data = self._backend.read_pages([page])[0]
        self._writer.put(_Save(identity, self._header(parent, tokens), data))
        self.saved += 1
        return True

    def remove(self, identities: Sequence[bytes]) -> None:
        """Removes files, whose contents may be wrong."""
        self._writer.put(_Remove(identities))

    def touch(self, identities: Sequence[bytes]) -> None:
        """Marks pages as used, the last one as the most recently used."""
        self._writer.put(_Touch(identities))

    def close(self) -> None:
        """Waits until the saved pages are on the disk, for five seconds at most."""
        self._writer.close()

    def _header(self, parent: bytes, tokens: tuple[int, ...]) -> bytes:
        return page_header(self.fingerprint, parent, tokens, self._backend.page_bytes)


@dataclass(frozen=True)
class _Save:
    """A message to the writing thread: write a page."""

    identity: bytes
    header: bytes
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class _Touch:
    """A message to the writing thread: mark pages as used."""

    identities: Sequence[bytes]


@dataclass(frozen=True)
class _Remove:
    """A message to the writing thread: remove pages."""

    identities: Sequence[bytes]


_Message = _Save | _Touch | _Remove


class _Writer:
    """The writing thread and its queue. It starts with the first message.

    It ends when the cache is closed or deleted. A forked process has no such thread, and sends it no message.
    """

    def __init__(self, files: PageFiles) -> None:
        self._files = files
        self._inbox: SimpleQueue[_Message | None] = SimpleQueue()
        self._process = os.getpid()
        self._started = False
        self._ended = False
        self._failed = False  # nothing is written any more
        # Bytes that were put, and bytes that were taken. Each number is changed by one thread only.
        self._put = 0
        self._taken = 0

    def is_full(self, size: int) -> bool:
        """Whether the queue has no space for another page; an empty queue always has space."""
        waiting = self._put - self._taken
        return waiting > 0 and waiting + size > _QUEUE_BYTES

    def put(self, message: _Message) -> None:
        """Sends a message."""
        if self._failed:
            return
        if isinstance(message, _Save):
            self._put += message.data.nbytes
        self._inbox.put(message)
        if not self._started:
            self._started = True
            atexit.register(self.close)  # not in the new thread, which may begin when the program has ended
            try:
                _thread.start_new_thread(self._run, ())
            except RuntimeError as exc:  # since Python 3.12, no thread can be started at the exit of the program
                self._started = False
                atexit.unregister(self.close)
                self.fail(str(exc))

    def fail(self, reason: str) -> None:
        """Stops writing for good, with a warning."""
        self._failed = True
        with suppress(UserWarning):  # warnings may be errors, which would end the thread
            warnings.warn(f"prefix_cache_dir is only read; new prefixes are not saved there: {reason}", stacklevel=3)

    def stop(self) -> None:
        """Ends the thread after the messages in the queue."""
        self._inbox.put(None)

    def close(self) -> None:
        """Ends the thread, and waits for it; pages that are not on the disk after `_CLOSE_SECONDS` are not written."""
        if self._started and os.getpid() == self._process:
            self.stop()
            # Ctrl-C may end the wait: `sleep` then leaves no lock behind.
            deadline = time.monotonic() + _CLOSE_SECONDS
            while not self._ended and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        self._failed = True

    def _run(self) -> None:
        try:
            while (message := self._inbox.get()) is not None:
                if not self._failed:
                    self._handle(message)
                if isinstance(message, _Save):
                    self._taken += message.data.nbytes
        finally:
            atexit.unregister(self.close)
            self._ended = True

    def _handle(self, message: _Message) -> None:
        try:
            if isinstance(message, _Save):
                self._files.write(message.identity, message.header, message.data)
            elif isinstance(message, _Touch):
                self._files.touch(message.identities)
            else:
                self._files.remove(message.identities)
        except (PunaError, MemoryError) as exc:
            self.fail(str(exc))
