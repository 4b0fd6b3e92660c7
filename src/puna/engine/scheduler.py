"""Chooses which requests run in a step, and how many tokens of each. The module handles neither tensors nor text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from puna.backend import PAGE
from puna.engine.lookup import Lookup
from puna.engine.request import Request
from puna.engine.sampling import Sampler


@dataclass
class ActiveRequest:
    """A request that has a slot.

    Attributes:
        cached: number of tokens of `prompt_ids` and `generated` that are in the cache.
        generated: ids chosen so far; the last one is not in the cache yet.
    """

    request_id: int
    request: Request
    slot: int
    sampler: Sampler
    cached: int = 0
    generated: list[int] = field(default_factory=list)
    lookup: Lookup | None = None

    @property
    def in_prompt(self) -> bool:
        """Whether part of the prompt has not been read yet."""
        return self.cached < len(self.request.prompt_ids)

    def next_tokens(self, limit: int) -> tuple[int, ...]:
        """Returns the tokens of the next step: up to `limit` of the prompt, or the last generated token and a guess."""
        if self.in_prompt:
            return self.request.prompt_ids[self.cached : self.cached + limit]
        remaining = self.request.max_tokens - len(self.generated) - 1  # a step generates one token more than it guesses
        guess = self.lookup.guess(remaining) if self.lookup is not None and remaining > 0 else ()
        return (self.generated[-1], *guess)

    def append(self, token: int) -> None:
        """Adds a generated token."""
        self.generated.append(token)
        if self.lookup is not None:
            self.lookup.extend((token,))


def tokens_needed(request: Request) -> int:
    """Returns the maximum number of cache tokens that a request uses, rounded up to complete pages."""
    return -(-(len(request.prompt_ids) + request.max_tokens) // PAGE) * PAGE


class Scheduler:
    """First come, first served: waiting requests get free slots in order; all active requests share each step.

    A request is admitted when pages for its prompt and its longest answer are free, so it cannot run out of cache.

    Args:
        slots: maximum number of sequences that run at once.
        cache_tokens: number of tokens that all caches together can hold; None means no limit.
        chunk: maximum number of prompt tokens per step, over all requests. It keeps steps short, so that a long prompt
            delays neither the next tokens of other requests nor the response to an interrupt.
    """

    def __init__(self, slots: int, chunk: int, cache_tokens: int | None = None) -> None:
        assert slots > 0 and chunk > 0
        self.chunk = chunk
        self.cache_tokens = cache_tokens
        self.waiting: deque[tuple[int, Request]] = deque()
        self.active: dict[int, ActiveRequest] = {}
        self._free_slots = list(range(slots))[::-1]

    def admit(self, vocab_size: int) -> None:
        """Assigns free slots to waiting requests."""
        while self.waiting and self._free_slots and self._fits(self.waiting[0][1]):
            request_id, request = self.waiting.popleft()
            sampler = Sampler(request.sampling, request.prompt_ids, vocab_size)
            active = ActiveRequest(request_id, request, self._free_slots.pop(), sampler)
            if request.speculate and request.max_tokens > 1:
                active.lookup = Lookup()
                active.lookup.extend(request.prompt_ids)
            self.active[request_id] = active

    def _fits(self, request: Request) -> bool:
        reserved = sum(tokens_needed(active.request) for active in self.active.values())
        return self.cache_tokens is None or reserved + tokens_needed(request) <= self.cache_tokens

    def plan(self) -> Iterator[tuple[ActiveRequest, tuple[int, ...]]]:
        """Yields (request, tokens) for a step: all requests that are decoding, and at most `chunk` prompt tokens."""
        budget = self.chunk
        for active in self.active.values():
            if not active.in_prompt:
                yield active, active.next_tokens(1)
            elif budget > 0:
                tokens = active.next_tokens(budget)
                budget -= len(tokens)
                yield active, tokens

    def finish(self, request_id: int) -> ActiveRequest:
        """Removes an active request, frees its slot and returns it."""
        active = self.active.pop(request_id)
        self._free_slots.append(active.slot)
        return active

    def forget(self, request_id: int) -> bool:
        """Removes a waiting request; returns whether it was waiting."""
        before = len(self.waiting)
        self.waiting = deque(item for item in self.waiting if item[0] != request_id)
        return len(self.waiting) < before
