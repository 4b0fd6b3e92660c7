"""Renders chat templates in a separate process, whose time and memory the operating system limits.

The process starts with the first rendering, serves all later ones, and ends with this process. `worker.py` is its
program. Requests are data of `marshal`; answers are text, so a template cannot return objects.
"""

from __future__ import annotations

import atexit
import contextlib
import marshal
import numbers
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from puna.errors import ChatTemplateError, show_bytes
from puna.templates.limits import MEMORY, SECONDS, SIZE

_PROGRAM = """\
import marshal, sys
sys.path[:] = marshal.load(sys.stdin.buffer)
from puna.templates.worker import serve
serve()
"""

_ENVIRONMENT = ("TZ", "LANG", "LC_ALL", "LC_CTYPE", "LC_TIME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Environment variables of the process: those that dates and the start of Python need."""

_MAX_REQUEST = 12 * 10**6
"""Maximum size of a template and its values, in bytes: rendering needs several copies of the text, of up to four bytes
a character, within `MEMORY`."""

_MAX_IDLE = 4
"""Maximum number of processes that wait for the next rendering: several threads may render at the same time."""

_MAX_DEPTH = 200
"""Maximum depth of nested values. `marshal` supports 2,000."""


class _Worker:
    """A process that renders one template at a time."""

    def __init__(self) -> None:
        if not sys.executable:
            raise ChatTemplateError("chat templates need a Python program, but sys.executable is not set")
        try:
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", _PROGRAM),
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},  # without secrets
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must not end the process
            )
        except OSError as exc:
            raise ChatTemplateError(
                f"the process that renders chat templates cannot be started: {sys.executable!r}: {exc.strerror}"
            ) from exc
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


class _Pool:
    """The processes that wait for a rendering, and those that render."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._is_registered = False

    def take(self) -> _Worker:
        with self._lock:
            if not self._is_registered:
                self._is_registered = True
                atexit.register(self._close)
                os.register_at_fork(after_in_child=self._after_fork)
            worker = self._idle.pop() if self._idle else _Worker()
            self._busy.add(worker)
            return worker

    def put(self, worker: _Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(worker)
                return
        worker.end(at_once=True)

    def end(self, worker: _Worker, at_once: bool = False) -> int:
        """Ends a process that renders; returns its exit status."""
        with self._lock:
            self._busy.discard(worker)
        return worker.end(at_once)

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().end(at_once=True)  # a forked process may hold the pipe that would end it

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        for worker in (*self._idle, *self._busy):
            worker.abandon()
        self._idle.clear()
        self._busy.clear()


_POOL = _Pool()


def render(template: str, values: Mapping[str, Any]) -> str:
    """Renders a template with plain values: None, numbers, text, lists and dictionaries.

    Raises:
        ChatTemplateError: the template does not compile, refuses the values, fails, or needs too much time or memory.
    """
    plain = {name: _plain(name, value) for name, value in values.items()}
    request = marshal.dumps((template, plain))
    if len(request) > _MAX_REQUEST:
        raise ChatTemplateError(
            f"the messages, tools and other values of the chat template have {show_bytes(len(request))}; the limit "
            f"is {show_bytes(_MAX_REQUEST)}. Shorten the conversation, or encode its text without a chat template"
        )
    answer = _answer(request)
    kind, text = answer[:1], answer[1:].decode("utf-8", "surrogatepass")
    if kind == b"T":
        return text
    if kind == b"C":
        raise ChatTemplateError(f"the chat template does not compile: {text}; fix it or pass chat_template=")
    if kind == b"R":
        raise ChatTemplateError(f"the chat template refuses this conversation: {text}")
    if kind == b"F":
        raise ChatTemplateError(
            f"the chat template failed on this conversation: {text}; compare the messages with what the template "
            "expects"
        )
    raise ChatTemplateError(
        f"the chat template needs more than {show_bytes(MEMORY)} of memory; shorten the chat or pass chat_template="
    )


def _answer(request: bytes) -> bytes:
    """Returns the answer of a process; starts another one if a waiting process has ended meanwhile."""
    while True:
        worker = _POOL.take()
        try:
            answer = worker.ask(request)
        except EOFError:
            status = _POOL.end(worker)
            if status in (-signal.SIGPROF, -signal.SIGALRM):
                raise ChatTemplateError(
                    f"the chat template needs more than {SECONDS} s; fix it or pass chat_template="
                ) from None
            if not worker.has_answered:
                raise ChatTemplateError(
                    f"the process that renders chat templates ended with status {status}; is jinja2 installed for "
                    f"{sys.executable}?"
                ) from None
            continue
        except BaseException:  # such as Ctrl-C
            _POOL.end(worker, at_once=True)
            raise
        if answer[:1] == b"M":
            _POOL.end(worker, at_once=True)  # the memory of the failed rendering may stay allocated
        else:
            _POOL.put(worker)
        return answer


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """Returns a value with Python's own types instead of their subclasses."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth == _MAX_DEPTH:
        raise ChatTemplateError(f"{name}: values are nested more than {_MAX_DEPTH} deep, or contain themselves")
    if isinstance(value, Mapping):
        return {_plain(name, key, depth + 1): _plain(name, item, depth + 1) for key, item in value.items()}
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            return base(_plain(name, item, depth + 1) for item in value)
    if isinstance(value, str):
        return str.__str__(value)  # str(value) of an enumeration is the name of the member
    if isinstance(value, numbers.Integral):  # also NumPy's numbers
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    raise ChatTemplateError(
        f"{name}: a value is a {type(value).__name__}; templates take None, numbers, text, lists and dictionaries"
    )
