"""The program of a separate process: answers requests within limits of time and memory."""

from __future__ import annotations

import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

TIME_SIGNALS = (signal.SIGPROF, signal.SIGALRM)
"""Signals that end a process whose request needs too much time."""

SIZE = struct.Struct("<Q")
"""Precedes each request and each answer: the number of bytes that follow."""


def serve_requests(answer: Callable[[bytes], bytes], seconds: float, wall_seconds: float, memory: int) -> None:
    """Answers the requests on standard input until it is closed. The program of a `Worker` runs this function.

    The process also ends after a request that leaves more than half of the memory allocated, so that each request can
    use at least the other half.

    Args:
        answer: returns the answer to a request.
        seconds: maximum processor time of one request. Its signal ends the process, also inside one long C call.
        wall_seconds: maximum elapsed time of one request: a busy machine may delay it.
        memory: what the process may allocate in addition to its memory when this function is called, in bytes.
    """
    for number in TIME_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TIME_SIGNALS)
    limit = _limit_memory(memory)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while size := requests.read(SIZE.size):
        request = requests.read(*SIZE.unpack(size))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)
        result = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(SIZE.pack(len(result)))
        answers.write(result)
        answers.flush()
        del request, result
        if _used_memory() > limit - memory // 2:
            return


def _used_memory() -> int:
    """Returns the size of this process's address space in bytes; 0 where the system does not tell it."""
    import resource  # does not exist on Windows

    statistics = Path("/proc/self/statm")
    return int(statistics.read_text().split()[0]) * resource.getpagesize() if statistics.exists() else 0


def _limit_memory(amount: int) -> int:
    """Limits what this process may allocate from now on, in bytes. Returns the limit of its address space.

    The limit has no effect on macOS.
    """
    import resource

    limit = _used_memory() + amount
    if _used_memory():
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return limit
