"""Prefetching of the pieces of tensors: a thread computes the next pieces while the caller writes earlier ones."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from puna.formats.mapped import release
from puna.formats.new_tensor import Buffer, NewTensor

QUEUED = 2
"""Pieces that may wait to be written."""


class _End:
    """Marks the end of a tensor in the queue."""


@contextmanager
def prefetched(tensors: Sequence[NewTensor]) -> Iterator[list[NewTensor]]:
    """Yields the same tensors with prefetched pieces; they must be read in this order.

    An error in computing a piece is raised where that piece is read.
    """
    pieces: queue.Queue[memoryview | _End | BaseException] = queue.Queue(QUEUED)
    stopped = threading.Event()

    def put(item: memoryview | _End | BaseException) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                pieces.put(item, timeout=0.05)
                return

    def compute() -> None:
        try:
            for tensor in tensors:
                for piece in tensor.pieces():
                    put(piece)
                    if stopped.is_set():
                        return
                put(_End())
        except BaseException as exc:  # raised again by `read`
            put(exc)

    def read() -> Iterator[Buffer]:
        while not isinstance(item := pieces.get(), _End):
            if isinstance(item, BaseException):
                raise item
            yield item
            # A piece may be a view of the source's file: writing it maps pages again that `pieces` had released.
            release(np.frombuffer(item, np.uint8))

    thread = threading.Thread(target=compute, name="puna-convert", daemon=True)
    thread.start()
    try:
        yield [replace(tensor, data=read) for tensor in tensors]
    finally:
        stopped.set()
        thread.join()
