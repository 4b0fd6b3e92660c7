"""`Stream`: the results of requests for their consumer, in any thread or in asyncio.

A stream and the stepping thread share a `Group`, which does not keep the stream alive. Messages to the stepping thread
go through an inbox, messages from it through the group's outbox. Both are `queue.SimpleQueue`s: their `put` is atomic,
takes no lock that Python code can hold, and may therefore be called by signal handlers and by the garbage collector.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from puna.engine.request import Event, Request

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

SIGNAL_SECONDS = 0.05
"""Maximum time until the main thread notices a signal, such as Ctrl-C, while it waits."""


class Result(Protocol):
    """Collects the events of one request, in the stepping thread.

    Attributes:
        request: the request.
        error: an error that ended the request.
    """

    request: Request
    error: Exception | None

    @property
    def finished(self) -> bool:
        """Whether the result is complete or has failed."""
        ...

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds the event of a step that ran from `started` to `ended` (seconds). An error ends only this request."""
        ...

    def take(self) -> Sequence[Any]:
        """Returns the pieces that were added since the last call."""
        ...


class News(NamedTuple):
    """A message to a stream: new pieces, how many of its requests have ended, and the error of one of them."""

    pieces: Sequence[Any] = ()
    ended: int = 0
    error: Exception | None = None


class Group(weakref.ref["Stream[Any]"]):
    """The requests of one stream. It refers to the stream weakly.

    When the stream is deleted, Python calls the callback with the group, which puts it into the inbox. The callback is
    `SimpleQueue.put`, which is written in C: no other code runs, so that neither Ctrl-C nor the garbage collector can
    interrupt it, and it never waits.

    Attributes:
        results: one per request.
        piece: returns what the stream yields for (index of the request, piece); None if only the end is reported.
        outbox: messages to the stream.
        listener: what to notify after a message, if asyncio waits for it.
        closed: whether the stream was closed; requests that are not submitted yet then never are.
        has_begun: whether a message has been sent; used by the stepping thread only.
        ids: the engine's ids of the unfinished requests; used by the stepping thread only.
    """

    results: Sequence[Result]
    piece: Callable[[int, Any], Any] | None
    listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
    closed = False
    has_begun = False

    def __init__(self, stream: Stream[Any], callback: Callable[[Group], None]) -> None:
        super().__init__(stream, callback)  # type: ignore[call-arg]
        self.outbox: SimpleQueue[News] = SimpleQueue()
        self.ids: list[int] = []


class Submission(NamedTuple):
    """A message to the stepping thread: submit the requests of a group. The group alone means: cancel them."""

    group: Group


class Owner(Protocol):
    """The part of `Runner` that a stream uses."""

    inbox: SimpleQueue[Any]

    def check_open(self) -> None:
        """Raises BackendError if the stepping thread does not answer any more."""
        ...


Item = TypeVar("Item")


class Stream(Generic[Item]):
    """Pieces of results, in the order in which they are generated, for `for` or `async for`.

    The requests end when the stream is closed or deleted, and when the iteration raises an error, also
    KeyboardInterrupt or asyncio's CancelledError. The stepping thread never waits for a consumer: pieces that are not
    consumed yet stay in memory, which the requests' `max_tokens` limits. A stream is meant for one consumer, but may be
    closed by others.

    Args:
        owner: the runner, which lives as long as the stream.
        results: one per request.
        piece: see `Group`.
    """

    def __init__(self, owner: Owner, results: Sequence[Result], piece: Callable[[int, Any], Any] | None = None) -> None:
        self._owner = owner
        self._pieces: deque[Item] = deque()
        self._unfinished = len(results)
        self._closed = False
        self.group = Group(self, owner.inbox.put)
        self.group.results, self.group.piece = results, piece

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        try:
            while self._may_continue():
                if self._pieces:
                    return self._pieces.popleft()
                self._receive(self._next_news())
        except BaseException:
            self.close()
            raise
        raise StopIteration

    async def __anext__(self) -> Item:
        try:
            while self._may_continue():
                if self._pieces:
                    return self._pieces.popleft()
                await self._arrival()
        except BaseException:
            self.close()
            raise
        raise StopAsyncIteration

    def wait(self) -> None:
        """Waits until all requests have ended; raises the first error."""
        try:
            while self._unfinished and self._may_continue():
                self._receive(self._next_news())
        except BaseException:
            self.close()
            raise

    async def wait_async(self) -> None:
        """Does the same as `wait` in asyncio."""
        try:
            while self._unfinished and self._may_continue():
                await self._arrival()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the requests, and the iteration, also one that waits in another thread. May be called repeatedly."""
        if not self._closed:
            self.group.closed = True
            if self._unfinished:
                self._owner.inbox.put(self.group)
            self._closed = True

    def _may_continue(self) -> bool:
        """Returns whether there are pieces, or will be."""
        return not self._closed and bool(self._pieces or self._unfinished)

    def _next_news(self) -> News:
        """Waits for a message. The main thread regularly executes bytecode meanwhile, which handles signals.

        A signal ends a wait of the main thread only if the system delivers it to that thread.

        Raises:
            BackendError: the model was closed.
        """
        self._owner.check_open()
        timeout = SIGNAL_SECONDS if threading.get_ident() == threading.main_thread().ident else None
        while True:
            with suppress(Empty):
                return self.group.outbox.get(timeout=timeout)

    @property
    def has_news(self) -> bool:
        """Whether a piece or a message has arrived that the consumer has not read."""
        return bool(self._pieces) or not self.group.outbox.empty()

    async def _arrival(self) -> None:
        """Waits for a message and reads it; raises BackendError if the model was closed."""
        import asyncio

        self._owner.check_open()
        loop = asyncio.get_running_loop()
        if self.group.listener is None or self.group.listener[0] is not loop:
            self.group.listener = loop, asyncio.Event()
        arrived = self.group.listener[1]
        while self.group.outbox.empty():  # a message after this check sets the event later, in this event loop
            await arrived.wait()
            arrived.clear()
        self._receive(self.group.outbox.get_nowait())

    def _receive(self, news: News) -> None:
        self._pieces.extend(news.pieces)
        self._unfinished = max(0, self._unfinished - news.ended)
        if not self._unfinished:
            self.group.outbox.put(News(ended=1))  # another thread that waits for this stream ends as well
        if news.error is not None:
            # A copy, because the traceback of an exception that is raised here refers to this stream.
            raise copy.copy(news.error) from news.error.__cause__
