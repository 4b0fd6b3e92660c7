"""`Interrupts`: Ctrl-C and SIGTERM end a run between two steps; a second Ctrl-C ends it inside a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from puna.training.messages import how_to_resume


class TrainingInterrupted(KeyboardInterrupt):
    """A run was ended by Ctrl-C or SIGTERM.

    Attributes:
        step: number of completed steps.
        path: folder of the saved state; None if it was not saved.
    """

    def __init__(self, step: int, path: Path | None) -> None:
        saved = "not saved"
        if path is not None:
            saved = f"saved in {path}; {how_to_resume(path.parent.parent)}"
        super().__init__(f"the training was interrupted; the state after step {step} is {saved}")
        self.step, self.path = step, path


class Interrupts:
    """Context manager that counts the signals SIGINT and SIGTERM. Outside the main thread it does nothing.

    Args:
        announce: called with the first signal, inside the signal handler.
    """

    def __init__(self, announce: Callable[[], None] | None = None) -> None:
        self._count, self._protected, self._announce = 0, False, announce
        self._handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run should end after its current step."""
        return self._count > 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                    self._handlers[number] = signal.signal(number, self._count_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _count_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1 and not self._protected:
            self._protected = True  # the state is saved next
            raise KeyboardInterrupt
        if self._count == 1 and not self._protected and self._announce is not None:
            self._announce()

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Delays a second Ctrl-C until the end of the block, which must not be interrupted."""
        with self.ignored():
            yield
        if self._count > 1:
            raise KeyboardInterrupt

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Only counts the signals during the block, such as while the state of an interrupted run is saved."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False
