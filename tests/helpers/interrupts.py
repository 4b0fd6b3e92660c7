"""Interrupts of the main thread at random times, as by Ctrl-C."""

from __future__ import annotations

import gc
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def aimed_interrupts(seed: int, most: float) -> Iterator[Callable[[Callable[[], object]], bool]]:
    """Context manager: yields a function that calls another one and raises KeyboardInterrupt in it.

    The interrupt comes after a random time of at most `most` seconds; the function returns whether it came in time. It
    may come at any bytecode of the call. Callbacks of the garbage collector, such as hypothesis's, are removed for this
    time: Python would ignore an interrupt inside them.
    """
    source = random.Random(seed)
    armed = False

    def handle(signal_number: int, frame: object) -> None:
        nonlocal armed
        if armed:  # the system may deliver the signal to another thread, after the call has ended
            armed = False
            raise KeyboardInterrupt

    def interrupt(call: Callable[[], object]) -> bool:
        nonlocal armed
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, source.uniform(1e-6, most))
            call()
            armed = False
        except KeyboardInterrupt:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    previous = signal.signal(signal.SIGALRM, handle)
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    try:
        yield interrupt
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gc.callbacks[:] = callbacks
