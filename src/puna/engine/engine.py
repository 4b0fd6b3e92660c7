"""`Engine.step()`: choose what runs, run it, sample, report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.backend import Backend, Chunk
from puna.engine.request import Event, FinishReason, Request
from puna.engine.scheduler import Running, Scheduler, cache_need
from puna.errors import BackendError, RequestError


class Engine:
    """Runs requests on a backend. Not thread-safe: one caller submits and steps.

    Args:
        backend: what computes logits and holds the caches.
        slots: sequences that may run at once.
        chunk: most prompt tokens read in one step.
    """

    def __init__(self, backend: Backend, slots: int = 1, chunk: int = 512) -> None:
        self.backend = backend
        self.scheduler = Scheduler(slots, chunk, backend.cache_tokens)
        self._next_id = 0

    def check(self, request: Request) -> None:
        """Raises RequestError when an id is not in the vocabulary, or prompt and answer do not fit the context."""
        config = self.backend.config
        for token in request.prompt_ids:
            if not 0 <= token < config.vocab_size:
                raise RequestError(f"token id {token} is not in the model's vocabulary of {config.vocab_size}")
        prompt, limit = len(request.prompt_ids), config.context_length
        if prompt + request.max_tokens > limit:
            raise RequestError(
                f"a prompt of {prompt} tokens and {request.max_tokens} to generate exceed the model's context of "
                f"{limit}; "
                + (f"set max_tokens to {limit - prompt} or less" if prompt < limit else "shorten the prompt")
            )

        room = self.backend.cache_tokens
        if room is not None and cache_need(request) > room:
            raise RequestError(
                f"a prompt of {prompt} tokens and {request.max_tokens} to generate need {cache_need(request)} tokens "
                f"of cache, and memory holds {room}; ask for fewer tokens, or free memory and load the model again"
            )

    def submit(self, request: Request) -> int:
        """Queues a request and returns its number; raises as `check` does."""
        self.check(request)
        self._next_id += 1
        self.scheduler.waiting.append((self._next_id, request))
        return self._next_id

    def cancel(self, request_id: int) -> None:
        """Ends a request and frees its cache; a request that has ended already is left alone."""
        if not self.scheduler.forget(request_id) and request_id in self.scheduler.running:
            self._release(request_id)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Event]:
        """Runs one batch and reports what it did for each request in it; an idle engine reports nothing."""
        self.scheduler.admit(self.backend.config.vocab_size)
        plan = list(self.scheduler.plan())
        if not plan:
            return []
        batch = [
            Chunk(running.slot, np.asarray(tokens, dtype=np.int64), running.done, _wanted_logits(running, len(tokens)))
            for running, tokens in plan
        ]
        logits = self.backend.forward(batch)
        events: list[Event] = []
        row = 0
        for (running, tokens), chunk in zip(plan, batch, strict=True):
            try:
                events += self._advance(running, tokens, logits[row : row + chunk.logits])
            except BackendError as exc:  # of this request alone: no token can be chosen
                self._release(running.request_id)
                events.append(Event(running.request_id, error=exc))
            row += chunk.logits
        return events

    def _advance(self, running: Running, tokens: tuple[int, ...], logits: NDArray[np.float32]) -> list[Event]:
        """Books what a step did for one request: a piece of its prompt, or the tokens that were generated."""
        if running.reads_prompt:
            return [self._read(running, len(tokens), logits)]
        return self._generate(running, tokens[1:], logits)

    def _read(self, running: Running, count: int, logits: NDArray[np.float32]) -> Event:
        """After the last piece of a prompt the first token is chosen.

        A step that is interrupted before its tokens are booked can be run again: backends drop what a cache holds
        beyond a chunk's start.
        """
        request = running.request
        complete = running.done + count >= len(request.prompt_ids)
        token = running.sampler.choose(logits[-1]) if complete and request.max_tokens > 0 else None
        running.done += count
        token, reason = self._accept(running, token)
        if reason is None and complete and request.max_tokens == 0:
            reason = "length"
            self._release(running.request_id)
        return Event(running.request_id, token, count, logits if request.prompt_logits else None, reason)

    def _generate(self, running: Running, guess: tuple[int, ...], logits: NDArray[np.float32]) -> list[Event]:
        """Chooses token after token while the guess agrees; each was read with the right tokens before it."""
        events: list[Event] = []
        for row, expected in enumerate((*guess, None)):
            try:
                token = running.sampler.choose(logits[row])
            except BackendError:
                if events:  # what was chosen before counts; the next step meets the error again
                    break
                raise
            running.done += 1
            kept, reason = self._accept(running, token)
            events.append(Event(running.request_id, kept, finish_reason=reason))
            if reason is not None or token != expected:
                break
        if running.lookup is not None:
            running.lookup.learn(len(guess), len(events) - 1)
        return events

    def _accept(self, running: Running, token: int | None) -> tuple[int | None, FinishReason | None]:
        """Adds a token to its request's answer unless it ends it: the token that was added, and why the answer ends."""
        request = running.request
        reason: FinishReason | None = None
        if token is not None and token in request.stop_ids:
            token, reason = None, "stop"
        elif token is not None:
            running.append(token)
            if len(running.generated) == request.max_tokens:
                reason = "length"
        if reason is not None:
            self._release(running.request_id)
        return token, reason

    def _release(self, request_id: int) -> None:
        self.backend.free(self.scheduler.finish(request_id).slot)


def _wanted_logits(running: Running, count: int) -> int:
    """All rows of a guess and of a prompt that is scored, else the last row once the prompt is complete."""
    if not running.reads_prompt or running.request.prompt_logits:
        return count
    ends = running.done + count >= len(running.request.prompt_ids)
    return 1 if ends and running.request.max_tokens > 0 else 0
