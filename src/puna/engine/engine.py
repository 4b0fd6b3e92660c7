"""`Engine.step()`: plans a batch, runs it, samples, and returns events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE, Backend, Chunk, Outputs
from puna.engine.disk import DiskCache
from puna.engine.grammar import Masks
from puna.engine.pages import PagePool
from puna.engine.request import Event, FinishReason, PrefixMiss, Request
from puna.engine.sampling import choose
from puna.engine.scheduler import RunningRequest, Scheduler, tokens_needed
from puna.engine.statistics import Counters, Statistics
from puna.errors import PunaError, RequestError, detached_error, show
from puna.native.sampling import Choice, most_likely


class Engine:
    """Runs requests on a backend. Not thread-safe: only one caller may submit and step.

    Args:
        backend: computes the logits.
        slots: maximum number of sequences that run at once.
        chunk: maximum number of prompt tokens per step.
        prefix_cache: let requests that begin with the same tokens use the same pages of the cache, also after the first
            of them has ended. The answers do not change.
        clock: returns the time in seconds, by which the scheduler measures steps.
        disk: files of pages, which requests use as well if `prefix_cache` is set.

    Attributes:
        pool: the pages of the cache.
        scheduler: the running and the waiting requests.
        counters: what has happened since the start.
    """

    def __init__(
        self,
        backend: Backend,
        slots: int = 1,
        chunk: int = 512,
        prefix_cache: bool = True,
        clock: Callable[[], float] = time.perf_counter,
        disk: DiskCache | None = None,
    ) -> None:
        self.backend = backend
        self._clock = clock
        disk = disk if prefix_cache else None
        self.pool = PagePool(backend.pages, prefix_cache, partial(_copy_page, backend), disk)
        self.scheduler = Scheduler(slots, chunk, self.pool)
        self.counters = Counters()
        self._masks = Masks()
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
        request.sampling.check_vocabulary(config.vocab_size)
        for token in request.prediction:
            if not 0 <= token < config.vocab_size:
                raise RequestError(f"the prediction's id {show(token)} is not in the vocabulary of {config.vocab_size}")
        limit, prompt = config.context_length, len(request.first_tokens)
        parts = [f"the prompt's tokens ({len(request.prompt_ids)})"]
        if request.virtual_tokens:
            parts.append(f"the adapter's virtual tokens ({request.virtual_tokens})")
        if prompt > limit:
            raise RequestError(f"{_listed(parts)} exceed the model's context of {limit} tokens; shorten the prompt")
        if prompt + request.max_tokens > limit:
            parts.append(f"max_tokens ({show(request.max_tokens)})")
            raise RequestError(
                f"{_listed(parts)} exceed the model's context of {limit} tokens; set max_tokens to "
                f"{limit - prompt} or less"
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
        self.scheduler.submit(self._next_id, request)
        return self._next_id

    def cancel(self, request_id: int) -> None:
        """Ends a request and frees its pages; does nothing if the request has ended."""
        if not self.scheduler.forget(request_id) and request_id in self.scheduler.running:
            self.scheduler.finish(request_id)

    def close(self) -> None:
        """Writes pages that wait for the disk, and frees the model."""
        try:
            if self.pool.disk is not None:
                self.pool.disk.close()
        finally:
            self.backend.close()

    def statistics(self) -> Statistics:
        """Returns the numbers of this moment. Any thread may call this during a step."""
        counters, pool, scheduler = self.counters, self.pool, self.scheduler
        # `list` copies a container in one operation of the interpreter, which no other thread interrupts.
        running = [active.request.adapter_name for active in list(scheduler.running.values())]
        waiting = [request.adapter_name for _, request in list(scheduler.waiting)]
        values: dict[str, Any] = {
            name: dict(list(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(counters).items()
        }
        disk: dict[str, Any] = {} if pool.disk is None else pool.disk.statistics()
        return Statistics(
            len(running), len(waiting), Counter(running), Counter(waiting), scheduler.slots, PAGE, pool.pages,
            pool.pages - pool.available, pool.cached, preemptions=scheduler.preemptions, evictions=pool.evictions,
            **values, **disk,
        )  # fmt: skip

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
        for active in list(self.scheduler.running.values()):
            self._fill_prefix(active)
        plan = self.scheduler.plan()  # may read pages from the disk, which is not part of the measured time
        started = self._clock()
        if plan:
            reading = [active.reading for active, _ in plan]
            total = sum(len(tokens) for _, tokens in plan)
            read = sum(len(tokens) for (_, tokens), reads in zip(plan, reading, strict=True) if reads)
            self.counters.steps[total] += 1
            if self._run(plan, reading):
                self.scheduler.times.record(total - read, read, self._clock() - started)
        events, self._events = self._events, []
        return events

    def _fill_prefix(self, active: RunningRequest) -> None:
        """Gives a request that has just been admitted the pages of its adapter's prefix.

        Complete pages are filled by the first request and shared; each request has its own copy of the last page.
        """
        adapter = active.request.adapter
        if adapter is None or active.computed >= adapter.prefix_length:
            return
        try:
            start = active.table.share(active.tokens, active.reusable)  # another request may have filled pages
            if start < adapter.prefix_length:
                adapter.fill(self.backend, active.table.pages, start // PAGE * PAGE)
        except Exception as exc:  # ends this request only
            self._fail(active, detached_error(exc))
            return
        active.computed = active.shared = max(start, adapter.prefix_length)
        active.table.register(active.tokens, active.computed)

    def _run(self, plan: list[tuple[RunningRequest, tuple[int, ...]]], reading: list[bool]) -> bool:
        """Runs a batch and appends the events of its requests to `_events`; returns whether the backend has run it."""
        try:
            chooses, steps = self.backend.chooses_tokens, zip(plan, reading, strict=True)
            batch = [_chunk(active, tokens, reads, chooses) for (active, tokens), reads in steps]
            outputs = self.backend.forward(batch)
        except Exception as exc:  # ends the requests of this batch; the others continue
            error = detached_error(exc)
            for active, _ in plan:
                self._fail(active, error)
            return False
        turns = []
        arrays: dict[str, NDArray[Any]] = {
            "logits": outputs.logits, "hidden": outputs.hidden, "token": outputs.tokens
        }  # fmt: skip
        next_row = dict.fromkeys(arrays, 0)
        for (active, tokens), reads, chunk in zip(plan, reading, batch, strict=True):
            row = next_row[chunk.output]
            rows = arrays[chunk.output][row : row + chunk.rows]
            if not reads:
                turns.append(_Turn(active, 1, row, tokens[1:], chosen=chunk.output == "token"))
                if len(tokens) > 1:
                    self.counters.drafts += 1
                    self.counters.draft_tokens += len(tokens) - 1
            elif active.computed + len(tokens) == len(active.tokens) and active.request.max_tokens > 0:
                last = row + len(rows) - 1
                turns.append(_Turn(active, len(tokens), last, rows=rows, chosen=chunk.output == "token"))
            else:
                self._advance(_Turn(active, len(tokens), row, rows=rows))
            next_row[chunk.output] += chunk.rows
        self._choose(turns, outputs)
        return True

    def _choose(self, turns: list[_Turn], outputs: Outputs) -> None:
        """Chooses the tokens of a step, first one of each request.

        A request continues with its next row while its tokens equal the guess. After a wrong guess, the remaining
        logits of the request are not valid.
        """
        while turns:
            unfinished = []
            for turn, choice in zip(turns, self._choices(turns, outputs), strict=True):
                if choice.error is None:
                    self._advance(turn, choice)
                    if choice.token == turn.expected and self._events[-1].finish_reason is None:
                        self.counters.accepted_tokens += 1
                        self.counters.accepted_positions[turn.accepted] += 1
                        unfinished.append(
                            turn._replace(length=1, row=turn.row + 1, accepted=turn.accepted + 1, rows=None)
                        )
                        continue
                elif turn.accepted == 0:
                    self._fail(turn.active, choice.error)
                # An error after accepted tokens is not reported here: it occurs again in the next step.
            turns = unfinished

    def _choices(self, turns: list[_Turn], outputs: Outputs) -> list[Choice]:
        """Returns the next choice of each turn: that of the backend, or one from logits."""
        others = [turn for turn in turns if not turn.chosen]
        samplers = [turn.active.sampler for turn in others]
        grammars = [sampler.grammar for sampler in samplers if sampler.grammar is not None]
        if grammars:
            started = time.perf_counter()
            self._masks.compute(grammars)
            self.counters.mask_seconds += time.perf_counter() - started
        rows = [turn.row for turn in others]
        choices = iter(choose(samplers, outputs.logits, rows, self.backend.native_model) if others else ())
        return [most_likely(int(outputs.tokens[turn.row])) if turn.chosen else next(choices) for turn in turns]

    def _advance(self, turn: _Turn, choice: Choice | None = None) -> None:
        """Records tokens that were computed, and the choice of the token after them. The request continues or ends.

        If an error or an interrupt ends the step before, the next step chooses the same token: see `Sampler`.
        """
        active, start, before = turn.active, turn.active.computed, turn.active.reported
        prompt, computed = active.prompt_end, start + turn.length
        reported, cached = max(before, min(computed, prompt)), max(0, min(start, prompt) - before)
        if choice is not None:
            active.sampler.commit(choice.token)
        active.computed, active.reported = computed, reported
        if choice is not None:
            token, stop_id, reason = _accept(active, choice.token)
        else:
            token, stop_id, reason = None, None, "length" if computed == len(active.tokens) else None
        rows = turn.rows if active.request.returns_rows and reported > before else None
        ends_prompt = before < prompt == reported
        active.cached += cached
        self.counters.prompt_tokens += reported - before
        self.counters.cached_tokens += cached
        self.counters.generated_tokens += choice is not None
        event = Event(
            active.request_id,
            token,
            prompt_tokens=reported - before - cached,
            cached_tokens=cached,
            logits=rows if active.request.output != "hidden" else None,
            hidden=rows if active.request.output == "hidden" else None,
            finish_reason=reason,
            stop_id=stop_id,
            logprobs=None if choice is None else choice.logprobs,
            prediction=None if reason is None else self._prediction(active),
            prefix_miss=self._prefix_miss(active) if ends_prompt and active.request.explains_prefix else None,
        )
        self._events.append(event)
        active.table.register(active.tokens, active.computed)
        if event.finish_reason is not None:
            self.scheduler.finish(active.request_id)
        elif start < prompt <= computed:
            active.table.register_part(active.tokens, computed)

    def _prediction(self, active: RunningRequest) -> tuple[int, int] | None:
        """Returns how many tokens of its prediction an answer has, and how many not; None without a prediction."""
        if active.prediction is None:
            return None
        accepted, rejected = active.prediction.accepted, active.prediction.rejected
        self.counters.accepted_prediction_tokens += accepted
        self.counters.rejected_prediction_tokens += rejected
        return accepted, rejected

    def _prefix_miss(self, active: RunningRequest) -> PrefixMiss | None:
        others = [other.request for other in self.scheduler.running.values()]
        return self.scheduler.recent.explain(active.request, active.cached - active.request.virtual_tokens, others)

    def _fail(self, active: RunningRequest, error: PunaError) -> None:
        """Ends a request with an error. Its pages may hold NaN, so later requests do not use them."""
        self._events.append(Event(active.request_id, error=error))
        self.scheduler.finish(active.request_id, valid=False)


class _Turn(NamedTuple):
    """Tokens of one request that a step has computed, and the logits from which the next tokens are chosen.

    Attributes:
        length: number of tokens that were computed before the next choice.
        row: index of the logits, or of the backend's tokens, of the next choice.
        guess: the expected tokens. A row of logits after the first is valid if the choices before it equal the guess.
        accepted: number of tokens of the guess that were chosen.
        rows: the logits of the computed tokens, if they are known tokens.
        chosen: whether the backend has chosen the tokens.
    """

    active: RunningRequest
    length: int
    row: int
    guess: tuple[int, ...] = ()
    accepted: int = 0
    rows: NDArray[np.float32] | None = None
    chosen: bool = False

    @property
    def expected(self) -> int | None:
        """The token that the next choice must have for the row after it to be valid; None after the last row."""
        return self.guess[self.accepted] if self.accepted < len(self.guess) else None


def _copy_page(backend: Backend, source: int, target: int) -> None:
    backend.write_pages([target], backend.read_pages([source]))


def _accept(active: RunningRequest, token: int) -> tuple[int | None, int | None, FinishReason | None]:
    """Adds a token to the answer, or ends the answer if it is a stop id; returns (token, stop id, finish reason).

    The answer also ends with the last token of its grammar, or with `max_tokens`.
    """
    if token in active.request.end_ids:
        return None, token, "stop"
    active.append(token)
    if active.sampler.complete:
        return token, None, "stop"
    return token, None, "length" if active.generated == active.request.max_tokens else None


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _chunk(active: RunningRequest, tokens: tuple[int, ...], reading: bool, chooses: bool) -> Chunk:
    """Returns the chunk of a request in a step, which reads known tokens or decodes.

    `chooses`: whether the backend can choose the tokens with the highest logits.
    """
    adapter, output = active.request.adapter, active.request.output
    by_backend = chooses and not active.request.returns_rows and active.sampler.takes_highest
    return Chunk(
        tuple(active.table.pages),
        np.asarray(tokens, dtype=np.int64),
        active.computed,
        _rows_needed(active, len(tokens)) if reading else len(tokens),
        "token" if by_backend else "hidden" if output == "hidden" else "logits",
        embeddings=None if adapter is None else adapter.embeddings(tokens, active.computed),
        adapter=0 if adapter is None else adapter.number,
    )


def _rows_needed(active: RunningRequest, count: int) -> int:
    """Returns how many rows of output a chunk of known tokens needs: one per scored token, one after the last token."""
    end = active.computed + count
    if active.request.returns_rows and active.reported < active.prompt_end:
        return max(0, end - max(active.computed, active.reported))
    return 1 if end == len(active.tokens) and active.request.max_tokens > 0 else 0
