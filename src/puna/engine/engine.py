"""`Engine.step()`: plans a batch, runs it, samples, and returns events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Backend, Chunk
from puna.engine.pages import PagePool
from puna.engine.request import Event, Request
from puna.engine.scheduler import RunningRequest, Scheduler, tokens_needed
from puna.errors import BackendError, PunaError, RequestError, puna_error, show


class Engine:
    """Runs requests on a backend. Not thread-safe: only one caller may submit and step.

    Args:
        backend: computes the logits.
        slots: maximum number of sequences that run at once.
        chunk: maximum number of prompt tokens per step.
        prefix_cache: let requests that begin with the same tokens use the same pages of the cache, also after the first
            of them has ended. The answers do not change.

    Attributes:
        pool: the pages of the cache.
        scheduler: the running and the waiting requests.
    """

    def __init__(self, backend: Backend, slots: int = 1, chunk: int = 512, prefix_cache: bool = True) -> None:
        self.backend = backend
        self.pool = PagePool(backend.pages, prefix_cache)
        self.scheduler = Scheduler(slots, chunk, self.pool)
        self._next_id = 0
        self._events: list[Event] = []  # of requests that have advanced in the current step

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a sequence: the model's context, or the cache if that is smaller."""
        return min(self.backend.config.context_length, self.pool.pages * PAGE)

    def check(self, request: Request) -> None:
        """Raises RequestError if an id is not in the vocabulary, or the request exceeds the context or the cache."""
        config = self.backend.config
        for token in request.prompt_ids:
            if not 0 <= token < config.vocab_size:
                raise RequestError(f"token id {show(token)} is not in the vocabulary of {config.vocab_size} tokens")
        prompt, limit = len(request.prompt_ids), config.context_length
        if prompt > limit:
            raise RequestError(
                f"the prompt's tokens ({prompt}) exceed the model's context of {limit} tokens; shorten the prompt"
            )
        if prompt + request.max_tokens > limit:
            raise RequestError(
                f"the prompt's tokens ({prompt}) and max_tokens ({request.max_tokens}) exceed the model's context of "
                f"{limit} tokens; set max_tokens to {limit - prompt} or less"
            )

        capacity, needed = self.pool.pages * PAGE, tokens_needed(request)
        if needed > capacity:
            raise RequestError(
                f"a prompt of {prompt} tokens and {request.max_tokens} new ones need a cache of {needed} tokens, but "
                f"memory is enough for {capacity}; request fewer tokens, or free memory and load the model again"
            )

    def submit(self, request: Request) -> int:
        """Queues a request and returns its id. Raises the errors of `check`."""
        self.check(request)
        self._next_id += 1
        self.scheduler.waiting.append((self._next_id, request))
        return self._next_id

    def cancel(self, request_id: int) -> None:
        """Ends a request and frees its pages; does nothing if the request has ended."""
        if not self.scheduler.forget(request_id) and request_id in self.scheduler.running:
            self.scheduler.finish(request_id)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Event]:
        """Runs one batch and returns the events of its requests; returns [] if there is nothing to run.

        An error of the backend ends the requests of the batch and is part of their events. If an interrupt ends the
        step, requests that have not advanced run again in the next step, which also returns the events of the others.
        """
        self.scheduler.admit(self.backend.config.vocab_size)
        plan = self.scheduler.plan()
        if plan:
            self._run(plan)
        events, self._events = self._events, []
        return events

    def _run(self, plan: list[tuple[RunningRequest, tuple[int, ...]]]) -> None:
        """Runs a batch and appends the events of its requests to `_events`."""
        batch = [
            Chunk(
                tuple(active.table.pages),
                np.asarray(tokens, dtype=np.int64),
                active.computed,
                _logits_needed(active, len(tokens)),
            )
            for active, tokens in plan
        ]
        try:
            logits = self.backend.forward(batch)
        except Exception as exc:  # ends the requests of this batch; the others continue
            for active, _ in plan:
                self._fail(active, puna_error(exc))
            return
        row = 0
        for (active, tokens), chunk in zip(plan, batch, strict=True):
            try:
                self._advance(active, tokens, logits[row : row + chunk.logits])
            except BackendError as exc:  # the logits of this request are not finite; the other requests continue
                self._fail(active, exc)
            row += chunk.logits

    def _advance(self, active: RunningRequest, tokens: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        """Records the result of a step for one request, which then either continues or ends."""
        if active.reading:
            self._read(active, len(tokens), logits)
        else:
            self._generate(active, tokens[1:], logits)
        active.table.register(active.tokens, active.computed)
        if self._events[-1].finish_reason is not None:
            self.scheduler.finish(active.request_id)

    def _read(self, active: RunningRequest, count: int, logits: NDArray[np.float32]) -> None:
        """Records `count` known tokens, and chooses the next token after the last one."""
        prompt, start, reported = len(active.request.prompt_ids), active.computed, active.reported
        complete = start + count == len(active.tokens)
        token = active.sampler.choose(logits[-1]) if complete and active.request.max_tokens > 0 else None
        active.computed = start + count
        active.reported = max(reported, min(active.computed, prompt))
        cached = max(0, min(start, prompt) - reported)
        event = Event(
            active.request_id,
            prompt_tokens=active.reported - reported - cached,
            cached_tokens=cached,
            logits=logits if active.request.prompt_logits and active.reported > reported else None,
        )
        if token is not None:
            event = _accept(active, token, event)
        elif complete:
            event = replace(event, finish_reason="length")
        self._events.append(event)

    def _generate(self, active: RunningRequest, guess: tuple[int, ...], logits: NDArray[np.float32]) -> None:
        """Chooses tokens while they equal the guess. After a wrong guess, the remaining logits are not valid."""
        accepted = 0
        for row, expected in enumerate((*guess, None)):
            try:
                token = active.sampler.choose(logits[row])
            except BackendError:
                if row:  # keep the tokens chosen so far; the next step raises the error again
                    break
                raise
            active.computed += 1
            self._events.append(_accept(active, token, Event(active.request_id)))
            if self._events[-1].finish_reason is not None or token != expected:
                break
            accepted += 1
        if active.lookup is not None:
            active.lookup.adapt(len(guess), accepted)

    def _fail(self, active: RunningRequest, error: PunaError) -> None:
        self._events.append(Event(active.request_id, error=error))
        self.scheduler.finish(active.request_id)


def _accept(active: RunningRequest, token: int, event: Event) -> Event:
    """Adds a token to the answer and to the event, or ends the answer if the token is a stop id."""
    if token in active.request.stop_ids:
        return replace(event, stop_id=token, finish_reason="stop")
    active.append(token)
    last = active.generated == active.request.max_tokens
    return replace(event, token=token, finish_reason="length" if last else None)


def _logits_needed(active: RunningRequest, count: int) -> int:
    """Returns how many rows of logits a chunk needs: one per generated or scored token, one after the last token."""
    if not active.reading:
        return count
    end = active.computed + count
    if active.request.prompt_logits and active.reported < len(active.request.prompt_ids):
        return max(0, end - max(active.computed, active.reported))
    return 1 if end == len(active.tokens) and active.request.max_tokens > 0 else 0
