"""`Runner`: steps an engine in a separate thread, for callers in any thread and in asyncio.

Only the stepping thread uses the engine and the backend. Callers and finalisers put messages into an inbox, which the
thread reads between two steps; see `puna.engine.stream`. An interrupt or a garbage collection can therefore neither
disturb a step nor leave a request half submitted.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from puna.engine.engine import Engine
from puna.engine.request import Event
from puna.engine.statistics import Statistics
from puna.engine.stream import Group, News, Result, Stream, Submission
from puna.errors import BackendError, ClosedError, PunaError, detached_error

if TYPE_CHECKING:
    import asyncio

_CLOSE_SECONDS = 0.001
"""Time between two checks whether the model has been freed."""

STREAMS_AT_ONCE = 16
"""Number of asyncio streams up to which each one is notified of each token.

With more streams, each is notified of several tokens at once: of four with 64 streams. Otherwise the event loop used
70 % of one of two cores (benchmarks/NOTES.md).
"""

_EXIT_SECONDS = 1.0
"""Maximum time that the exit of the program waits for the end of a native step, which may take longer.

A step of PyTorch is always completed: PyTorch aborts the program when Python stops a thread that runs it.
"""


class Runner:
    """Runs the requests of all threads on one engine.

    The stepping thread starts with the first request. It ends, and frees the model, when the runner is closed or
    deleted. Streams keep their runner alive. In a forked process, whose copy of the runner has no thread, every call is
    an error.
    """

    def __init__(self, engine: Engine) -> None:
        self._process = os.getpid()
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self._stepper = _Stepper(engine, self.inbox)
        self._stepper.owner = weakref.ref(self, self.inbox.put)  # deleting the runner sends a message

    @property
    def closed(self) -> bool:
        """Whether the runner was closed."""
        return self._stepper.closed

    def statistics(self) -> Statistics:
        """Returns the numbers of the engine at this moment, without waiting for the stepping thread."""
        return self._stepper.engine.statistics()

    def check_open(self) -> None:
        """Raises BackendError if the runner was closed, or belongs to the parent of this process."""
        if self._stepper.closed:
            raise _closed_error()
        if os.getpid() != self._process:
            raise BackendError(
                "this process was forked from the one that loaded the model, and the threads that run the model exist "
                "only there; load the model in this process"
            )

    def stream(self, result: Result) -> Stream[Any]:
        """Submits a request; returns a stream of the pieces of its result."""
        return self._submit(Stream(self, [result], lambda index, piece: piece))

    def stream_batch(self, results: Sequence[Result]) -> Stream[tuple[int, Any]]:
        """Submits requests together; returns a stream of (index of the request, piece)."""
        return self._submit(Stream(self, results, lambda index, piece: (index, piece)))

    def submit(self, results: Sequence[Result]) -> Stream[Any]:
        """Submits requests together; returns a stream without pieces, for `wait` or `wait_async`."""
        return self._submit(Stream(self, results))

    def close(self) -> None:
        """Frees the model after the current step, and waits for this. Unfinished requests raise errors."""
        self._stepper.closed = True
        if os.getpid() != self._process:
            self._stepper.engine.close()
        elif not self._stepper.freed:
            self.inbox.put(_STOP)
            try:
                self._start_thread()
            except BackendError:  # since Python 3.12, no thread can be started at the exit of the program
                self._stepper.run()  # frees the model, and ends
            # A finaliser may run in the stepping thread. Ctrl-C may end the wait: `sleep` then leaves no lock behind.
            while not (self._stepper.freed or threading.get_ident() == self._stepper.ident):
                time.sleep(_CLOSE_SECONDS)

    def _submit(self, stream: Stream[Any]) -> Stream[Any]:
        """Submits the requests of a stream. An exception at any point, such as KeyboardInterrupt, cancels them."""
        try:
            self.check_open()
            if threading.get_ident() == self._stepper.ident:
                raise BackendError(
                    "a finaliser (such as __del__) that the garbage collector called in the thread that runs the model "
                    "requests an answer, for which the thread would wait forever; call the model elsewhere"
                )
            self.inbox.put(Submission(stream.group))
            self._start_thread()
        except BaseException:
            stream.close()
            raise
        return stream

    def _start_thread(self) -> None:
        """Starts the stepping thread unless it runs. Of two threads that start at once, one ends immediately."""
        if not self._stepper.is_running.locked():
            try:
                # `threading.Thread.start` waits for the thread; Ctrl-C during this wait can leave its lock unusable.
                _thread.start_new_thread(self._stepper.run, ())
            except RuntimeError as exc:
                raise BackendError(f"the thread that runs the model cannot be started: {exc}") from exc


_STOP = object()
"""A message to the stepping thread: end. It also closes the model if `closed` is set."""


@dataclass(frozen=True)
class _Job:
    """A request in the engine: a result and its position in a group."""

    group: Group
    index: int
    result: Result

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds an event to the result. An exception ends only this request."""
        try:
            self.result.feed(event, started, ended)
        except Exception as exc:
            self.result.error = detached_error(exc)

    def news(self) -> News | None:
        """Returns the message to the stream after a step; None if there is nothing to report."""
        piece, finished = self.group.piece, self.result.finished
        pieces = () if piece is None else [piece(self.index, item) for item in self.result.take()]
        return News(pieces, int(finished), self.result.error) if pieces or finished else None


class _Stepper:
    """The state of the stepping thread. It refers to the runner weakly, so that unused models are deleted.

    Attributes:
        owner: weak reference to the runner; as a message, it means that the runner was deleted.
        closed: whether the model was closed, by any thread.
        is_running: locked while a thread runs.
        freed: whether the model has been freed after `closed`.
        ident: the identifier of the thread that runs.
    """

    owner: weakref.ref[Runner]

    def __init__(self, engine: Engine, inbox: SimpleQueue[Any]) -> None:
        self.engine = engine
        self.inbox = inbox
        self.closed = False
        self.is_running = threading.Lock()
        self.freed = False
        self.ident: int | None = None
        self._process = os.getpid()
        self._jobs: dict[int, _Job] = {}  # by the engine's ids
        self._silent: dict[int, tuple[Group, int]] = {}  # by id(group): groups with news, and for how many steps

    def run(self) -> None:
        """Serves messages and steps the engine until it is told to end. The target of the thread."""
        while self.is_running.acquire(blocking=False):
            self.ident = threading.get_ident()
            atexit.register(self._stop_at_exit)
            try:
                while not self.closed and self._read_inbox():
                    self._step()
                if self.closed:
                    self._close(_closed_error())
            except BaseException as exc:  # from the engine's own code: its state is not known any more
                self.closed = True
                self._close(detached_error(exc))
            finally:
                atexit.unregister(self._stop_at_exit)
                self.ident = None
                self.is_running.release()
            # A message that arrived before the release did not start another thread.
            if not self.closed or self.inbox.empty():
                return

    def _stop_at_exit(self) -> None:
        """Ends the thread before Python stops it at an unknown point, for example inside PyTorch."""
        if os.getpid() == self._process:
            self.inbox.put(_STOP)
            if self.is_running.acquire(timeout=_EXIT_SECONDS if self.engine.backend.name == "native" else -1):
                self.is_running.release()

    def _read_inbox(self) -> bool:
        """Reads all messages; waits for one if there is nothing to step. Returns False if the thread must end."""
        while not self.inbox.empty() or not self.engine.busy:
            if not self._handle(self.inbox.get()):
                return False
        return True

    def _handle(self, message: Any) -> bool:
        if message is _STOP or message is self.owner:
            return False
        if isinstance(message, Submission):
            self._submit(message.group)
        else:
            self._cancel(message)
        return True

    def _submit(self, group: Group) -> None:
        """Submits the requests of a group, unless its stream has been closed or deleted meanwhile."""
        if group.closed or group() is None:
            self._publish([(group, News(ended=len(group.results)))])  # another thread may wait for the stream
            return
        for index, result in enumerate(group.results):
            self._submit_request(_Job(group, index, result))

    def _submit_request(self, job: _Job) -> None:
        try:
            request_id = self.engine.submit(job.result.request)
        except Exception as exc:
            self._publish([(job.group, News(ended=1, error=detached_error(exc)))])
        else:
            self._jobs[request_id] = job
            job.group.ids.append(request_id)

    def _cancel(self, group: Group) -> None:
        """Ends the requests of a group; a thread that waits for one of them continues."""
        ids = [request_id for request_id in group.ids if request_id in self._jobs]
        self._end(ids, [(group, News(ended=len(ids)))] if ids else [])

    def _end(self, ids: Sequence[int], messages: Sequence[tuple[Group, News]]) -> None:
        """Removes requests, also from the engine, and then sends messages to streams."""
        try:
            for request_id in ids:
                del self._jobs[request_id]
                self.engine.cancel(request_id)  # does nothing if the request has ended there
        finally:
            self._publish(messages)

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            events = self.engine.step()
        except Exception as exc:  # outside the forward pass, whose errors the engine reports as events
            self._fail(detached_error(exc))
            return
        ended = time.perf_counter()
        touched: dict[int, _Job] = {}
        for event in events:
            job = self._jobs.get(event.request_id)
            if job is not None and not job.result.finished:
                job.feed(event, started, ended)
                touched[event.request_id] = job
        messages = [(job.group, news) for job in touched.values() if (news := job.news()) is not None]
        self._end([request_id for request_id, job in touched.items() if job.result.finished], messages)

    def _fail(self, error: PunaError) -> None:
        """Ends all requests with an error."""
        self._end(list(self._jobs), [(job.group, News(ended=1, error=error)) for job in self._jobs.values()])

    def _close(self, error: PunaError) -> None:
        """Frees the model, and ends all requests with an error, also those that are submitted at the same time."""
        groups = [job.group for job in self._jobs.values()]
        self._jobs.clear()
        while not self.inbox.empty():
            message = self.inbox.get()
            groups += [message.group] * len(message.group.results) if isinstance(message, Submission) else []
        self._publish([(group, News(ended=1, error=error)) for group in groups])
        try:
            self.engine.close()
        finally:
            self.freed = True

    def _publish(self, messages: Iterable[tuple[Group, News]]) -> None:
        """Sends messages to streams, and notifies each event loop once of those that are due."""
        arrived: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
        for group in self._send(messages):
            if group.listener is not None:
                loop, event = group.listener
                arrived.setdefault(loop, []).append(event)
        for loop, events in arrived.items():
            with suppress(RuntimeError):  # the event loop is closed, so that nothing can read the stream any more
                loop.call_soon_threadsafe(_set_all, events)

    def _send(self, messages: Iterable[tuple[Group, News]]) -> list[Group]:
        """Sends messages to streams; returns the groups to notify: at the end, after some steps, and without news."""
        touched: dict[int, tuple[Group, bool]] = {}  # by id(group): whether a request has ended
        for group, news in messages:
            group.outbox.put(news)
            has_ended = touched[id(group)][1] if id(group) in touched else False
            touched[id(group)] = group, has_ended or news.ended > 0
        steps = 1 + max(0, len(self._jobs) - 1) // STREAMS_AT_ONCE
        due, silent = [], self._silent
        self._silent = {}
        for key, (group, has_ended) in touched.items():
            _, waited = silent.pop(key, (group, 0 if group.has_begun else steps))
            group.has_begun = True
            if has_ended or waited + 1 >= steps:
                due.append(group)
            else:
                self._silent[key] = group, waited + 1
        return due + [group for group, _ in silent.values()]


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


def _closed_error() -> ClosedError:
    return ClosedError("the model is closed; load it again")
