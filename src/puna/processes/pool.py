"""Starts separate processes, and passes requests to those that wait."""

from __future__ import annotations

import atexit
import contextlib
import errno
import marshal
import os
import subprocess
import sys
import threading

from puna.processes.serving import SIZE, TIME_SIGNALS

_PROGRAM = """\
import marshal, sys
sys.path[:] = marshal.load(sys.stdin.buffer)
from {module} import serve
serve()
"""

_ENVIRONMENT = ("TZ", "LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Environment variables of the processes: those that dates and the start of Python need."""

_MAX_PROCESSES = 4
"""Maximum number of processes of a pool. Requests of more threads wait for one of them."""


class WorkerError(Exception):
    """A process ended before it answered. `status` is its exit status, negative for the signal that ended it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the process ended with status {status}")
        self.status = status


class Worker:
    """A process that answers one request at a time, with the function `serve` of a module.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, module: str) -> None:
        if not sys.executable:
            raise OSError(errno.ENOENT, "sys.executable is not set")
        self._process = subprocess.Popen(
            (sys.executable, "-I", "-S", "-c", _PROGRAM.format(module=module)),
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},  # without secrets
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not end the process
        )
        self._write(marshal.dumps([str(folder) for folder in sys.path]))

    def ask(self, request: bytes) -> bytes:
        """Returns the answer to a request; raises EOFError if the process ends before it answers."""
        assert self._process.stdout
        self._write(SIZE.pack(len(request)) + request)
        size = self._process.stdout.read(SIZE.size)
        if len(size) < SIZE.size:
            raise EOFError
        (count,) = SIZE.unpack(size)
        answer = self._process.stdout.read(count)
        if len(answer) < count:
            raise EOFError
        return answer

    def _write(self, data: bytes) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # the process has ended, which `ask` notices
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def end(self, at_once: bool = False) -> int:
        """Ends the process; returns its exit status, negative for the signal that ended it."""
        if at_once:
            self._process.kill()
        self._close_pipes()  # the process ends when its standard input is closed
        return self._process.wait()

    def abandon(self) -> None:
        """Forgets a process that belongs to the parent of this process."""
        self._process.returncode = 0
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.raw.close()  # type: ignore[attr-defined]  # another thread held the buffer's lock at the fork

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class WorkerPool:
    """The processes of a module: those that wait for a request, and those that work on one."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.RLock()
        self._free = threading.Semaphore(_MAX_PROCESSES)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._is_registered = False

    def ask(self, request: bytes) -> bytes:
        """Returns the answer of a process to a request.

        A process that waited may have ended meanwhile, or earlier requests may have left it little memory, so that a
        request that ends it is repeated in a new process.

        Raises:
            OSError: a process cannot be started.
            WorkerError: a new process ended before it answered, or the request needed too much time.
        """
        with self._free:
            worker = self._take_idle()
            if worker is not None:
                try:
                    return self._ask(worker, request)
                except WorkerError as exc:
                    if -exc.status in TIME_SIGNALS:
                        raise
            return self._ask(self._start(), request)

    def close(self) -> None:
        """Ends the processes that wait."""
        while self._idle:
            self._idle.pop().end(at_once=True)  # a forked process may hold the pipe that would end it

    def _ask(self, worker: Worker, request: bytes) -> bytes:
        try:
            answer = worker.ask(request)
        except EOFError:
            raise WorkerError(self._end(worker)) from None
        except BaseException:  # such as Ctrl-C
            self._end(worker, at_once=True)
            raise
        with self._lock:
            self._busy.discard(worker)
            self._idle.append(worker)
        return answer

    def _take_idle(self) -> Worker | None:
        with self._lock:
            if not self._idle:
                return None
            worker = self._idle.pop()
            self._busy.add(worker)
            return worker

    def _start(self) -> Worker:
        with self._lock:  # a fork waits until the process is in the list
            if not self._is_registered:
                self._is_registered = True
                atexit.register(self.close)
                os.register_at_fork(
                    before=self._acquire, after_in_parent=self._release, after_in_child=self._forget_all
                )
            worker = Worker(self._module)
            self._busy.add(worker)
            return worker

    def _end(self, worker: Worker, at_once: bool = False) -> int:
        with self._lock:
            self._busy.discard(worker)
        return worker.end(at_once)

    def _acquire(self) -> None:
        self._lock.acquire()

    def _release(self) -> None:
        self._lock.release()

    def _forget_all(self) -> None:
        self._lock = threading.RLock()
        self._free = threading.Semaphore(_MAX_PROCESSES)
        for worker in (*self._idle, *self._busy):
            worker.abandon()
        self._idle.clear()
        self._busy.clear()
