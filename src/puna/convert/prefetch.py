"""Making the next pieces of tensors while the last ones are written: one thread makes, the caller writes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from puna.formats.mapped import release
from puna.formats.new_tensor import Buffer, NewTensor

_PIECES = 2
"""Pieces that may wait to be written."""


class _End:
    """What follows a tensor's last piece."""


@contextmanager
def made_ahead(tensors: Sequence[NewTensor]) -> Iterator[list[NewTensor]]:
    """The same tensors, to be written in this order; an error in making a piece is raised where the piece is taken."""
    waiting: queue.Queue[memoryview | _End | BaseException] = queue.Queue(_PIECES)
    stopped = threading.Event()

    def put(item: memoryview | _End | BaseException) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.05)
                return

    def make() -> None:
        try:
            for tensor in tensors:
                for piece in tensor.pieces():
                    put(piece)
                    if stopped.is_set():
                        return
                put(_End())
        except BaseException as exc:  # raised again by the caller
            put(exc)

    def take() -> Iterator[Buffer]:
        while not isinstance(item := waiting.get(), _End):
            if isinstance(item, BaseException):
                raise item
            yield item
            # A piece may be a view of the source's file, which its maker gave back before it was written.
            release(np.frombuffer(item, np.uint8))

    maker = threading.Thread(target=make, name="puna-convert", daemon=True)
    maker.start()
    try:
        yield [replace(tensor, data=take) for tensor in tensors]
    finally:
        stopped.set()
        maker.join()
