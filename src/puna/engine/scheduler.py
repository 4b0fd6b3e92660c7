"""Chooses which requests run in a step, how many tokens of each, and in which pages. Handles no tensors and no text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from puna.backend import PAGE, page_count
from puna.engine.lookup import Lookup, guess_length
from puna.engine.pages import MIN_COPY, Identity, PagePool, PageTable, common_length
from puna.engine.prediction import Prediction
from puna.engine.prefixes import RecentSequences
from puna.engine.request import Request
from puna.engine.sampling import Sampler
from puna.engine.step_times import MAX_SLOWDOWN, StepTimes


@dataclass
class RunningRequest:
    """A request that was admitted, and its progress.

    Attributes:
        table: the pages of its tokens.
        tokens: the ids of the adapter's virtual tokens (0), of the prompt, and then the generated ids.
        prompt_end: number of virtual and prompt tokens.
        computed: number of tokens whose keys and values are in the pages.
        shared: `computed` when the request last continued with cached pages.
        reported: number of virtual and prompt tokens that events have reported. It is larger than `computed` while the
            request is computed again after a preemption.
        cached: number of tokens of the prompt that were found in the prefix cache.
    """

    request_id: int
    request: Request
    sampler: Sampler
    table: PageTable
    tokens: list[int] = field(init=False)
    prompt_end: int = field(init=False)
    computed: int = 0
    shared: int = 0
    reported: int = 0
    cached: int = 0
    lookup: Lookup | None = None
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.first_tokens)
        self.prompt_end = len(self.tokens)
        self.reported = self.request.virtual_tokens + self.request.logits_from
        if self.request.speculate and self.request.max_tokens > 1:
            self.lookup = Lookup(self.tokens, self.request.virtual_tokens)
        if self.request.prediction:
            self.prediction = Prediction(self.request.prediction)

    @property
    def generated(self) -> int:
        """Number of generated tokens."""
        return len(self.tokens) - self.prompt_end

    @property
    def reading(self) -> bool:
        """Whether the request computes known tokens: its prompt or, after a preemption, also its generated tokens."""
        return self.computed < max(self.prompt_end, len(self.tokens) - 1)

    @property
    def at_start(self) -> bool:
        """Whether the next page has no tokens yet, or only virtual or copied ones."""
        return self.computed % PAGE == 0 or self.computed in (self.request.prefix_length, self.shared)

    def share(self) -> None:
        """Continues with cached pages. The request has not computed tokens of the next page itself."""
        self.shared = max(self.computed, self.table.share(self.tokens, self.reusable, self.computed))
        self.computed = self.shared

    @property
    def reusable(self) -> int:
        """Maximum number of tokens that may come from cached pages. At least one must be computed, for its logits."""
        last = len(self.tokens) - 1
        return min(last, self.reported) if self.request.returns_rows else last

    def next_known(self, limit: int) -> tuple[int, ...]:
        """Returns up to `limit` known tokens that are computed next; a chunk has no text next to a soft prompt."""
        virtual = self.request.virtual_tokens
        end = self.computed + limit
        return tuple(self.tokens[self.computed : min(end, virtual) if self.computed < virtual else end])

    @property
    def predicts(self) -> bool:
        """Whether a prediction has the next token."""
        return self.prediction is not None and bool(self.prediction.guess(1))

    def guess(self, space: int) -> tuple[tuple[int, ...], float]:
        """Returns up to `space` tokens that may follow the last generated one, and the chance that each is right."""
        # A step generates one token more than it guesses.
        limit = min(space, self.request.max_tokens - self.generated - 1)
        if self.lookup is None or limit <= 0:
            return (), 0.0
        if self.prediction is not None and (guess := self.prediction.guess(limit)):
            return guess, self.prediction.accuracy
        self.lookup.index()
        return self.lookup.guess(limit), self.lookup.accuracy

    def append(self, token: int) -> None:
        """Adds a generated token."""
        if self.prediction is not None:
            self.prediction.observe(token)
        if self.lookup is not None:
            self.lookup.observe(token)
        self.tokens.append(token)


def tokens_needed(request: Request) -> int:
    """Returns the maximum number of cache tokens that a request uses, rounded up to complete pages."""
    return page_count(len(request.first_tokens) + request.max_tokens) * PAGE


class Scheduler:
    """Requests are admitted by priority, in order of arrival if equal, and all running requests share each step.

    A request is admitted when the pages of its next chunk are free; pages for its answer are not reserved. If pages run
    out, the youngest request of the lowest priority loses its pages and waits. Later it computes its prompt and the
    tokens that it has generated again, and continues with the same random numbers, so its answer does not change. The
    oldest request of the highest priority always runs, because each request alone fits in the cache.

    Measured times of steps decide how many prompt tokens a step reads while other requests are decoding, and whether it
    guesses tokens. The answers do not depend on either.

    Args:
        slots: maximum number of sequences that run at once.
        chunk: maximum number of prompt tokens per step, over all requests. It keeps the response to an interrupt short.
        pool: the pages of the cache.

    Attributes:
        times: predicts the times of steps.
        running: admitted requests by id, the oldest first.
        waiting: (id, request) of the others, in the order of admission.
        preemptions: number of times that a request has lost its pages.
        recent: the tokens of requests that have ended.
    """

    def __init__(self, slots: int, chunk: int, pool: PagePool) -> None:
        assert slots > 0 and chunk > 0
        self.slots = slots
        self.chunk = chunk
        self.pool = pool
        self.times = StepTimes()
        self.waiting: deque[tuple[int, Request]] = deque()
        self.running: dict[int, RunningRequest] = {}
        self.preemptions = 0
        self.recent = RecentSequences()
        self._preempted: dict[int, RunningRequest] = {}  # progress of waiting requests that have run before
        self._refused = (0, 0)  # the first waiting request that did not fit, and the pool's changes at that time

    def submit(self, request_id: int, request: Request) -> None:
        """Adds a waiting request: after those whose priority is at most as high a number."""
        index = len(self.waiting)
        while index and self.waiting[index - 1][1].priority > request.priority:
            index -= 1
        self.waiting.insert(index, (request_id, request))

    def admit(self, vocab_size: int) -> None:
        """Moves requests from `waiting` to `running`, and gives them the pages of their next chunk."""
        while self.waiting and len(self.running) < self.slots:
            request_id, request = self.waiting[0]
            if self._refused == (request_id, self.pool.changes):
                return
            state = self._preempted.get(request_id)
            if state is None:
                tokens: Sequence[int] = request.first_tokens
                length = len(tokens)
                reusable = request.virtual_tokens + request.logits_from if request.returns_rows else length - 1
            else:
                tokens, length, reusable = state.tokens, len(state.tokens), state.reusable
            matches, idle = self.pool.match(request.page_salt, tokens, reusable)
            # A preempted request waits for pages for all its tokens, so that it is not preempted again immediately.
            start = max(matches * PAGE, request.prefix_length)
            end = length if state is not None else min(length, start + self.chunk)
            if page_count(end) - matches + idle > self.pool.available:
                self._refused = request_id, self.pool.changes
                return
            self.waiting.popleft()
            if state is None:
                sampler = Sampler(
                    request.sampling,
                    request.prompt_ids,
                    vocab_size,
                    request.end_ids,
                    request.candidate,
                    request.grammar,
                )
                state = RunningRequest(request_id, request, sampler, PageTable(self.pool, request.page_salt))
            self._preempted.pop(request_id, None)
            self.running[request_id] = state
            state.share()
            state.table.reserve(end)

    def plan(self) -> list[tuple[RunningRequest, tuple[int, ...]]]:
        """Returns (request, tokens) for a step, and takes pages for these tokens.

        A step has one token of each request that is decoding, and some tokens of the requests that are reading. If none
        is reading, it may also have guesses of the next tokens.
        """
        steps = []
        decoding = [active for active in self.running.values() if not active.reading]
        reading = len(self.running) - len(decoding)
        # Without requests that decode, the limit lets first answers begin early; requests for states have no answer.
        answers = sum(active.request.max_tokens > 0 for active in self.running.values())
        readers = reading if decoding else answers
        budget = self.times.budget(len(decoding), readers, self.chunk) if reading else self.chunk
        guesses = {} if reading else self._guesses(decoding)
        in_progress: dict[Identity, list[tuple[int, ...]]] = {}  # tokens of pages that this step computes
        for active in self._ordered():
            if active.request_id not in self.running:  # preempted by a request before it
                continue
            tokens: tuple[int, ...] = ()
            reads = active.reading and self._reads_own_tokens(active, in_progress)
            if reads:
                tokens = active.next_known(budget)
            elif not active.reading:
                tokens = (active.tokens[-1], *guesses.get(active.request_id, ()))
            if tokens and self._reserve(active, active.computed + len(tokens)):
                steps.append((active, tokens))
                budget -= len(tokens) if reads else 0
        return steps

    def finish(self, request_id: int, valid: bool = True) -> None:
        """Removes a running request and releases its pages.

        Args:
            valid: whether other requests may use its pages.
        """
        active = self.running.pop(request_id)
        if self.pool.sharing:
            self.recent.add(active.request, active.tokens[: active.computed])
        if valid:
            active.table.register_part(active.tokens, active.computed)
        else:
            active.table.unregister()
        active.table.clear()

    def forget(self, request_id: int) -> bool:
        """Removes a waiting request; returns whether it was waiting."""
        before = len(self.waiting)
        self.waiting = deque(item for item in self.waiting if item[0] != request_id)
        self._preempted.pop(request_id, None)
        return len(self.waiting) < before

    def _reads_own_tokens(self, active: RunningRequest, in_progress: dict[Identity, list[tuple[int, ...]]]) -> bool:
        """Returns whether a request that is reading must compute known tokens in this step.

        At the start of a page, or after a prefix, it first continues with cached pages. If an older request is
        computing at least half of the tokens that the request needs in this page, it waits for them instead of
        computing them too. While it reads pages from the disk, it computes none.
        """
        if not self.pool.sharing:
            return True
        if active.at_start:
            active.share()
        if self.pool.disk is not None and self._read_disk(active):
            return False
        parent, tokens = active.table.next_key(active.tokens, len(active.tokens))
        others = in_progress.setdefault(parent, [])
        _, shareable = active.table.next_key(active.tokens, active.reusable)
        known = active.computed % PAGE  # virtual or copied tokens
        least = known + max(MIN_COPY, (len(shareable) - known + 1) // 2)
        waits = active.at_start and any(common_length(other, shareable) >= least for other in others)
        others.append(tokens)
        return active.reading and not waits  # the cached pages may have been the last tokens to read

    def _read_disk(self, active: RunningRequest) -> bool:
        """Continues a request with pages from the disk; returns whether there were any.

        A step reads about as many tokens as it would compute: reading is faster, so the step stays short. The request
        may have been preempted.
        """
        table = active.table
        limit = min(active.reusable, table.full + max(self.chunk, PAGE))
        has_read = False
        while (end := table.full + PAGE) <= limit:
            key = table.next_key(active.tokens, end)
            if self.pool.find(key) is not None:  # another request has computed it: the page table shares it later
                break
            data = self.pool.load(key, self.times.per_prompt_token * PAGE)
            if data is None:
                break
            if not self._reserve(active, end):
                return True
            if not table.restore(key, data):
                break
            has_read = True
            active.computed = max(active.computed, end)
        return has_read

    def _guesses(self, decoding: list[RunningRequest]) -> dict[int, tuple[int, ...]]:
        """Returns the tokens that a step guesses, by request. All running requests are decoding.

        Without a prediction, only a request that runs alone guesses: several requests already share the time of reading
        the weights, and the measured gain was below zero for texts that do not repeat themselves (benchmarks/NOTES.md).
        Guesses for one request must not delay the others more than the prompt of another request may.
        """
        guesses: dict[int, tuple[int, ...]] = {}
        tokens, expected = len(decoding), float(len(decoding))
        limit = MAX_SLOWDOWN * (self.times.plain(tokens) or 0.0) if tokens > 1 else float("inf")
        for active in decoding:
            if active.lookup is None or (len(decoding) > 1 and not active.predicts):
                continue
            guess, accuracy = active.guess(self._space(active) - 1)
            length = guess_length(accuracy, len(guess), self.times, tokens, expected, limit)
            if length:
                guesses[active.request_id] = guess[:length]
                tokens += length
                expected += sum(accuracy**count for count in range(1, length + 1))
        return guesses

    def _space(self, active: RunningRequest) -> int:
        """Returns how many tokens fit in a request's pages; in one more page if there are enough for all requests."""
        extra = PAGE if self.pool.available > len(self.running) else 0
        return len(active.table.pages) * PAGE + extra - active.computed

    def _reserve(self, active: RunningRequest, length: int) -> bool:
        """Takes pages for `length` positions, from requests after it if necessary.

        Returns False if the request itself is the last one and was preempted.
        """
        while active.table.missing(length) > self.pool.available:
            last = self._ordered()[-1]
            self._preempt(last)
            if last is active:
                return False
        active.table.reserve(length)
        return True

    def _ordered(self) -> list[RunningRequest]:
        """Returns the running requests by priority, the oldest of equal priority first."""
        return sorted(self.running.values(), key=lambda active: active.request.priority)

    def _preempt(self, active: RunningRequest) -> None:
        self.finish(active.request_id)
        active.computed = 0
        self._preempted[active.request_id] = active
        # It has arrived before the waiting requests of its priority.
        index = next(
            (i for i, (_, other) in enumerate(self.waiting) if other.priority >= active.request.priority), None
        )
        self.waiting.insert(len(self.waiting) if index is None else index, (active.request_id, active.request))
        self.preemptions += 1
