"""`Engine.step()`: choose what runs, run it, sample, report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.backend import Backend, Chunk
from puna.engine.request import Event, FinishReason, Request
from puna.engine.scheduler import Running, Scheduler, cache_need
from puna.errors import RequestError


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
        events = []
        row = 0
        for (running, tokens), chunk in zip(plan, batch, strict=True):
            events.append(self._advance(running, len(tokens), logits[row : row + chunk.logits]))
            row += chunk.logits
        return events

    def _advance(self, running: Running, count: int, logits: NDArray[np.float32]) -> Event:
        """Chooses the next token where the sequence is complete so far, and only then books `count` tokens as done.

        A step that is interrupted before can be run again: backends drop what a cache holds beyond a chunk's start.
        """
        request = running.request
        read = count if running.reads_prompt else 0
        reported = logits if read and request.prompt_logits else None
        complete = running.done + count >= len(request.prompt_ids)
        token = running.sampler.choose(logits[-1]) if complete and request.max_tokens > 0 else None
        running.done += count
        reason: FinishReason | None = None
        if token is not None and token in request.stop_ids:
            token, reason = None, "stop"
        elif token is not None:
            running.generated.append(token)
        if reason is None and complete and len(running.generated) == request.max_tokens:
            reason = "length"
        if reason is not None:
            self._release(running.request_id)
        return Event(running.request_id, token, read, reported, reason)

    def _release(self, request_id: int) -> None:
        self.backend.free(self.scheduler.finish(request_id).slot)


def _wanted_logits(running: Running, count: int) -> int:
    """All rows for a request that scores its prompt, else the last row once the sequence is complete."""
    if running.request.prompt_logits and running.reads_prompt:
        return count
    ends = running.done + count >= len(running.request.prompt_ids)
    return 1 if ends and running.request.max_tokens > 0 else 0
