"""Which requests run in a step, and with how many tokens each. Policy only: no tensors, no text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from puna.backend import PAGE
from puna.engine.lookup import Lookup
from puna.engine.request import Request
from puna.engine.sampling import Sampler


@dataclass
class Running:
    """A request that holds a slot.

    Attributes:
        done: tokens of `prompt_ids` and `generated` together that are in the cache.
        generated: ids chosen so far; the last one is not in the cache yet.
    """

    request_id: int
    request: Request
    slot: int
    sampler: Sampler
    done: int = 0
    generated: list[int] = field(default_factory=list)
    lookup: Lookup | None = None

    @property
    def reads_prompt(self) -> bool:
        """Whether part of the prompt is still to be read."""
        return self.done < len(self.request.prompt_ids)

    def next_tokens(self, limit: int) -> tuple[int, ...]:
        """The tokens of the next step: up to `limit` of the prompt, or the one generated last and a guess behind it."""
        if self.reads_prompt:
            return self.request.prompt_ids[self.done : self.done + limit]
        left = self.request.max_tokens - len(self.generated) - 1  # beside the one that follows in any case
        guess = self.lookup.guess(left) if self.lookup is not None and left > 0 else ()
        return (self.generated[-1], *guess)

    def append(self, token: int) -> None:
        """Adds a generated token."""
        self.generated.append(token)
        if self.lookup is not None:
            self.lookup.extend((token,))


def cache_need(request: Request) -> int:
    """Tokens of cache that a request takes at most, in whole pages."""
    return -(-(len(request.prompt_ids) + request.max_tokens) // PAGE) * PAGE


class Scheduler:
    """First come, first served: waiting requests take free slots in order; running ones share each step.

    A request is admitted when the whole pages for its prompt and answer are free, so that none runs out midway.

    Args:
        slots: sequences that may run at once.
        cache_tokens: tokens that all caches can hold; None: no limit.
        chunk: most prompt tokens read in one step, over all requests, so that one long prompt neither delays the
            others' next tokens nor the answer to an interrupt.
    """

    def __init__(self, slots: int, chunk: int, cache_tokens: int | None = None) -> None:
        assert slots > 0 and chunk > 0
        self.chunk = chunk
        self.cache_tokens = cache_tokens
        self.waiting: deque[tuple[int, Request]] = deque()
        self.running: dict[int, Running] = {}
        self._free = list(range(slots))[::-1]

    def admit(self, vocab_size: int) -> None:
        """Gives free slots to waiting requests."""
        while self.waiting and self._free and self._fits(self.waiting[0][1]):
            request_id, request = self.waiting.popleft()
            sampler = Sampler(request.sampling, request.prompt_ids, vocab_size)
            running = Running(request_id, request, self._free.pop(), sampler)
            if request.speculate and request.max_tokens > 1:
                running.lookup = Lookup()
                running.lookup.extend(request.prompt_ids)
            self.running[request_id] = running

    def _fits(self, request: Request) -> bool:
        taken = sum(cache_need(running.request) for running in self.running.values())
        return self.cache_tokens is None or taken + cache_need(request) <= self.cache_tokens

    def plan(self) -> Iterator[tuple[Running, tuple[int, ...]]]:
        """Yields what runs in this step: each decoding request's token, and prompt pieces within the budget."""
        budget = self.chunk
        for running in self.running.values():
            if not running.reads_prompt:
                yield running, running.next_tokens(1)
            elif budget > 0:
                tokens = running.next_tokens(budget)
                budget -= len(tokens)
                yield running, tokens

    def finish(self, request_id: int) -> Running:
        """Takes a request out; its slot becomes free."""
        running = self.running.pop(request_id)
        self._free.append(running.slot)
        return running

    def forget(self, request_id: int) -> bool:
        """Drops a request that still waits; False when it does not wait."""
        before = len(self.waiting)
        self.waiting = deque(item for item in self.waiting if item[0] != request_id)
        return len(self.waiting) < before
