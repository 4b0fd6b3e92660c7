"""`Admission`: decides which requests run, which wait and in which order, and which are refused.

The engine runs a limited number of sequences at once. Further requests wait here instead of in the engine, so that
their order can be fair and their number is limited. All code runs in the event loop, without locks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from puna.server.errors import ApiError

FairBy = Literal["key", "user", "none"]

_LONGEST_RETRY = 60
"""Maximum seconds of Retry-After."""

_WEIGHT = 0.1
"""Weight of the latest request in the average time of a request, from which Retry-After is computed."""


@dataclass(frozen=True)
class AdmissionSettings:
    """Limits of concurrent requests.

    Attributes:
        queue: maximum number of waiting requests; further ones are refused with 429.
        queue_seconds: maximum time that a request waits; then it is refused with 408.
        per_caller: maximum number of requests of one caller that wait or run; None means no limit.
        fair_by: between which origins the server is shared equally: API keys ("key"), or the users that requests name
            ("user"). "none" serves requests in the order of their arrival.
    """

    queue: int = 256
    queue_seconds: float = 120.0
    per_caller: int | None = None
    fair_by: FairBy = "key"


@dataclass(eq=False)
class Ticket:
    """A request that waits or runs.

    Attributes:
        caller: who sent the request.
        origin: the API key or user with which the server is shared; see `AdmissionSettings.fair_by`.
        priority: lower numbers are served first.
        size: number of sequences that the request generates.
        model: the name of the requested model or adapter, for the metrics.
        arrived: time of arrival, from `time.perf_counter`.
        admitted: time when the request began to run; None while it waits.
    """

    caller: str
    origin: str
    priority: int
    size: int
    model: str
    arrived: float
    admitted: float | None = None
    ready: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return (self.admitted or time.perf_counter()) - self.arrived


@dataclass
class _Origin:
    """The requests of one origin.

    Attributes:
        running: number of running sequences.
        requests: number of waiting and running requests.
        served: number of its latest admission, counted over all origins.
    """

    running: int = 0
    requests: int = 0
    served: int = 0


class Admission:
    """A bounded queue in front of the engine.

    Waiting requests with the lowest priority number are served first. Among these, a request of the origin with the
    fewest running sequences is first; ties: the origin that was served longest ago. An origin with many requests can
    therefore delay another origin by at most one request.

    Args:
        slots: number of sequences that may run at once.
        settings: limits.
    """

    def __init__(self, slots: int, settings: AdmissionSettings | None = None) -> None:
        self.slots = slots
        self.settings = settings or AdmissionSettings()
        self.free = slots
        self.waiting: list[Ticket] = []
        self.running: set[Ticket] = set()
        self._origins: dict[str, _Origin] = {}
        self._requests: Counter[str] = Counter()  # waiting and running requests of each caller
        self._admissions = 0
        self._seconds = 1.0  # moving average of the time of a request

    async def enter(
        self, caller: str, user: str | None = None, priority: int = 0, size: int = 1, model: str = ""
    ) -> Ticket:
        """Waits until a request may run. `leave` must be called with the ticket, whatever happens to the request.

        Raises:
            ApiError: 429, if the queue is full or the caller has too many requests; 408 after too long a wait.
        """
        origin = self._origin_name(caller, user)
        ticket = Ticket(caller, origin, priority, max(1, min(size, self.slots)), model, time.perf_counter())
        self._check(ticket)
        self._origins.setdefault(origin, _Origin()).requests += 1
        self._requests[caller] += 1
        self.waiting.append(ticket)
        self._admit()
        try:
            # Not `wait_for`: before Python 3.12 it ignores a cancellation in the moment of the admission.
            await asyncio.wait({ticket.ready}, timeout=self.settings.queue_seconds)
        except BaseException:  # the client has disconnected
            self.leave(ticket)
            raise
        if ticket.admitted is None:
            self.leave(ticket)
            seconds = self.settings.queue_seconds
            raise ApiError(
                408, f"the request waited {seconds:g} seconds for other requests; try again later",
                code="queue_timeout", retry_after=self.retry_after(),
            )  # fmt: skip
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Ends a request that waits or runs; may be called repeatedly."""
        if ticket in self.running:
            self.running.remove(ticket)
            self.free += ticket.size
            self._origins[ticket.origin].running -= ticket.size
            assert ticket.admitted is not None
            self._seconds += _WEIGHT * (time.perf_counter() - ticket.admitted - self._seconds)
        elif ticket in self.waiting:
            self.waiting.remove(ticket)
        else:
            return
        self._requests[ticket.caller] -= 1
        self._requests += Counter()  # removes counts of 0
        origin = self._origins[ticket.origin]
        origin.requests -= 1
        if not origin.requests:
            del self._origins[ticket.origin]
        self._admit()

    def retry_after(self) -> int:
        """Returns the estimated seconds until a new request could run, from the time of recent requests."""
        sequences = sum(ticket.size for ticket in self.waiting) + 1
        return max(1, min(_LONGEST_RETRY, math.ceil(self._seconds * sequences / self.slots)))

    def _origin_name(self, caller: str, user: str | None) -> str:
        if self.settings.fair_by == "none":
            return ""
        return f"{caller}/{user}" if self.settings.fair_by == "user" and user is not None else caller

    def _check(self, ticket: Ticket) -> None:
        limit, count = self.settings.per_caller, self._requests[ticket.caller]
        if limit is not None and count >= limit:
            raise ApiError(
                429, f"this caller has {count} unfinished requests, and the limit is {limit}; try again later",
                code="rate_limit_exceeded", retry_after=self.retry_after(),
            )  # fmt: skip
        if len(self.waiting) >= self.settings.queue and (self.waiting or ticket.size > self.free):
            raise ApiError(
                429, f"{len(self.waiting)} requests are waiting; the limit is {self.settings.queue}. Try again later",
                code="rate_limit_exceeded", retry_after=self.retry_after(),
            )  # fmt: skip

    def _admit(self) -> None:
        """Admits waiting requests while there are free slots. The next request is never overtaken by a smaller one."""
        while self.waiting:
            ticket = min(self.waiting, key=self._order)
            if ticket.size > self.free:
                return
            self.waiting.remove(ticket)
            self.running.add(ticket)
            self.free -= ticket.size
            self._admissions += 1
            origin = self._origins[ticket.origin]
            origin.running += ticket.size
            origin.served = self._admissions
            ticket.admitted = time.perf_counter()
            if not ticket.ready.done():
                ticket.ready.set_result(None)

    def _order(self, ticket: Ticket) -> tuple[float, ...]:
        origin = self._origins[ticket.origin]
        return ticket.priority, origin.running, origin.served, ticket.arrived
