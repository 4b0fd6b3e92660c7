"""`Engine.step()`: plans a batch, runs it, samples, and returns events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from puna.backend import Backend, Chunk
from puna.engine.request import Event, Request
from puna.engine.scheduler import ActiveRequest, Scheduler, tokens_needed
from puna.errors import BackendError, PunaError, RequestError, puna_error, show


class Engine:
    """Runs requests on a backend. Not thread-safe: only one caller may submit and step.

    Args:
        backend: computes the logits and owns the caches.
        slots: maximum number of sequences that run at once.
        chunk: maximum number of prompt tokens per step.
    """

    def __init__(self, backend: Backend, slots: int = 1, chunk: int = 512) -> None:
        self.backend = backend
        self.scheduler = Scheduler(slots, chunk, backend.cache_tokens)
        self._next_id = 0

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a sequence: the model's context, or the cache if that is smaller."""
        context, cache = self.backend.config.context_length, self.backend.cache_tokens
        return context if cache is None else min(context, cache)

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

        capacity, needed = self.backend.cache_tokens, tokens_needed(request)
        if capacity is not None and needed > capacity:
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
        """Ends a request and frees its cache; does nothing if the request has ended."""
        if not self.scheduler.forget(request_id) and request_id in self.scheduler.active:
            self._release(request_id)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or active."""
        return bool(self.scheduler.waiting or self.scheduler.active)

    def step(self) -> list[Event]:
        """Runs one batch and returns the events of its requests; returns [] if there is nothing to run.

        An error of the backend ends the requests of the batch and is part of their events.
        """
        self.scheduler.admit(self.backend.config.vocab_size)
        plan = list(self.scheduler.plan())
        if not plan:
            return []
        batch = [
            Chunk(active.slot, np.asarray(tokens, dtype=np.int64), active.cached, _logits_needed(active, len(tokens)))
            for active, tokens in plan
        ]
        try:
            logits = self.backend.forward(batch)
        except Exception as exc:  # ends the requests of this batch; the others continue
            return [self._fail(active.request_id, puna_error(exc)) for active, _ in plan]
        events: list[Event] = []
        row = 0
        for (active, tokens), chunk in zip(plan, batch, strict=True):
            try:
                events += self._advance(active, tokens, logits[row : row + chunk.logits])
            except BackendError as exc:  # the logits of this request are not finite; the other requests continue
                events.append(self._fail(active.request_id, exc))
            row += chunk.logits
        return events

    def _advance(self, active: ActiveRequest, tokens: tuple[int, ...], logits: NDArray[np.float32]) -> list[Event]:
        """Records the result of a step for one request: a chunk of its prompt, or generated tokens."""
        if active.in_prompt:
            return [self._advance_prompt(active, len(tokens), logits)]
        return self._generate(active, tokens[1:], logits)

    def _advance_prompt(self, active: ActiveRequest, count: int, logits: NDArray[np.float32]) -> Event:
        """Records `count` prompt tokens, and chooses the answer's first token after the last prompt token.

        A step that is interrupted before `active.cached` changes can be run again: backends discard the cached
        positions from a chunk's start on.
        """
        request = active.request
        complete = active.cached + count >= len(request.prompt_ids)
        token = active.sampler.choose(logits[-1]) if complete and request.max_tokens > 0 else None
        active.cached += count
        event = Event(active.request_id, prompt_tokens=count, logits=logits if request.prompt_logits else None)
        if complete and request.max_tokens == 0:
            self._release(active.request_id)
            return replace(event, finish_reason="length")
        return event if token is None else self._accept(active, token, event)

    def _generate(self, active: ActiveRequest, guess: tuple[int, ...], logits: NDArray[np.float32]) -> list[Event]:
        """Chooses tokens while they equal the guess. After a wrong guess, the remaining logits are not valid."""
        events: list[Event] = []
        for row, expected in enumerate((*guess, None)):
            try:
                token = active.sampler.choose(logits[row])
            except BackendError:
                if events:  # keep the tokens chosen so far; the next step raises the error again
                    break
                raise
            active.cached += 1
            events.append(self._accept(active, token, Event(active.request_id)))
            if events[-1].finish_reason is not None or token != expected:
                break
        if active.lookup is not None:
            active.lookup.adapt(len(guess), len(events) - 1)
        return events

    def _accept(self, active: ActiveRequest, token: int, event: Event) -> Event:
        """Adds a token to the answer and to the event, or ends the answer if the token is a stop id."""
        request = active.request
        if token in request.stop_ids:
            event = replace(event, stop_id=token, finish_reason="stop")
        else:
            active.append(token)
            last = len(active.generated) == request.max_tokens
            event = replace(event, token=token, finish_reason="length" if last else None)
        if event.finish_reason is not None:
            self._release(active.request_id)
        return event

    def _fail(self, request_id: int, error: PunaError) -> Event:
        self._release(request_id)
        return Event(request_id, error=error)

    def _release(self, request_id: int) -> None:
        self.backend.free(self.scheduler.finish(request_id).slot)


def _logits_needed(active: ActiveRequest, count: int) -> int:
    """Returns how many rows of logits a chunk needs: one per generated or scored token, one at a prompt's end."""
    if not active.in_prompt or active.request.prompt_logits:
        return count
    complete = active.cached + count >= len(active.request.prompt_ids)
    return 1 if complete and active.request.max_tokens > 0 else 0
