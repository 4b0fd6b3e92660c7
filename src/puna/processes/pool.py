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

_MAX_IDLE = 4
"""Maximum number of processes of a pool that wait for the next request: several threads may send one."""


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
        self.has_answered = False
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
        self.has_answered = True
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
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._is_registered = False

    def ask(self, request: bytes) -> bytes:
        """Returns the answer of a process to a request.

        A process that has answered before may have ended meanwhile, or its memory may be used up, so the request is
        then repeated with a new one.

        Raises:
            OSError: a process cannot be started.
            WorkerError: the process ended before it answered: it needed too much time, crashed, or could not start.
        """
        while True:
            worker = self._take()
            try:
                answer = worker.ask(request)
            except EOFError:
                status = self._end(worker)
                if not worker.has_answered or -status in TIME_SIGNALS:
                    raise WorkerError(status) from None
            except BaseException:  # such as Ctrl-C
                self._end(worker, at_once=True)
                raise
            else:
                self._put(worker)
                return answer

    def close(self) -> None:
        """Ends the processes that wait."""
        while self._idle:
            self._idle.pop().end(at_once=True)  # a forked process may hold the pipe that would end it

    def _take(self) -> Worker:
        with self._lock:
            if not self._is_registered:
                self._is_registered = True
                atexit.register(self.close)
                os.register_at_fork(after_in_child=self._after_fork)
            worker = self._idle.pop() if self._idle else Worker(self._module)
            self._busy.add(worker)
            return worker

    def _put(self, worker: Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(worker)
                return
        worker.end(at_once=True)

    def _end(self, worker: Worker, at_once: bool = False) -> int:
        with self._lock:
            self._busy.discard(worker)
        return worker.end(at_once)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        for worker in (*self._idle, *self._busy):
            worker.abandon()
        self._idle.clear()
        self._busy.clear()
