"""Decisions by measured step times, on a fake backend that advances a simulated clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from puna.backend import Outputs
from puna.engine import Engine, Request
from puna.engine.lookup import guess_length
from puna.engine.step_times import MAX_SLOWDOWN, StepTimes
from tests.engine.recorder import VOCAB, Recorder


def memory_bound(tokens: int) -> float:
    """A large model: the time of the weights, until the products of more than ten tokens take longer."""
    return max(0.020, 0.002 * tokens)


def compute_bound(tokens: int) -> float:
    return 0.001 + 0.002 * tokens


def in_tiles(tokens: int) -> float:
    """Tokens are computed in tiles of eight."""
    return 0.010 + 0.012 * (-(-tokens // 8))


COSTS = [memory_bound, compute_bound, in_tiles]


class TimedBackend(Recorder):
    """A backend whose forward pass takes `cost(tokens)` seconds of a simulated clock, with some noise.

    Args:
        repeats: whether answers repeat the 12 tokens before, otherwise they only depend on the number of tokens.
    """

    def __init__(self, cost: Callable[[int], float], noise: float = 0.0, repeats: float = 0.0) -> None:
        super().__init__(pages=400, context=8192)
        self.now = 0.0
        self.cost = cost
        self.noise = noise
        self.repeats = repeats
        self.random = np.random.default_rng(0)
        self.texts = np.random.default_rng(1).integers(0, VOCAB, 8192)
        if repeats:
            for position in range(24, 8192):
                if self.random.random() < repeats:
                    self.texts[position] = self.texts[position - 12]

    def forward(self, batch):
        seconds = self.cost(sum(len(chunk.tokens) for chunk in batch))
        self.now += seconds * (1 + self.noise * self.random.exponential())
        self.batches.append([len(chunk.tokens) for chunk in batch])
        ends = [(chunk.start + len(chunk.tokens), chunk.rows) for chunk in batch]
        positions = [position % 8192 for end, rows in ends for position in range(end - rows + 1, end + 1)]
        logits = np.eye(VOCAB, dtype=np.float32)[self.texts[positions]]
        return Outputs(logits, np.empty((0, self.config.hidden_size), np.float32))

    def engine(self, slots: int = 1) -> Engine:
        return Engine(self, slots, prefix_cache=False, clock=lambda: self.now)


def text(backend: TimedBackend, count: int) -> tuple[int, ...]:
    return tuple(backend.texts[:count].tolist())


def time_to_first_token(backend: TimedBackend, engine: Engine, prompt: tuple[int, ...]) -> tuple[float, list[float]]:
    """Submits a prompt; returns the time to its first token, and the times of the steps until then."""
    request_id, ends = engine.submit(Request(prompt, 1)), [backend.now]
    while True:
        events = engine.step()
        ends.append(backend.now)
        if any(event.request_id == request_id and event.token is not None for event in events):
            return ends[-1] - ends[0], [end - start for start, end in pairwise(ends)]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_long_prompt_slows_the_other_requests_by_a_bounded_factor(cost, noise):
    backend = TimedBackend(cost, noise)
    engine = backend.engine(9)
    alone, _ = time_to_first_token(backend, engine, text(backend, 4000))
    for _ in range(8):
        engine.submit(Request(text(backend, 30), 4000))
    undisturbed = []
    for _ in range(200):
        start = backend.now
        engine.step()
        undisturbed.append(backend.now - start)
    undisturbed = undisturbed[10:]
    batches = len(backend.batches)
    together, disturbed = time_to_first_token(backend, engine, text(backend, 4000))
    assert all(batch[:8] == [1] * 8 for batch in backend.batches[batches:])  # nobody waits
    assert np.percentile(disturbed, 99) <= 2.5 * np.percentile(undisturbed, 99)
    assert together <= 1.3 * alone + len(disturbed) * np.mean(undisturbed)


def test_a_prompt_alone_is_read_in_full_chunks():
    backend = TimedBackend(compute_bound)
    engine = backend.engine(2)
    time_to_first_token(backend, engine, text(backend, 1100))
    assert backend.batches == [[512], [512], [76]]


def test_prompts_that_arrive_together_begin_their_answers_one_after_another():
    """Four prompts of 128 tokens: their first tokens come after 128, 256, 384 and 512 tokens, not all after 512."""
    backend = TimedBackend(compute_bound)
    engine = backend.engine(4)
    ids = [engine.submit(Request(text(backend, 128), 1)) for _ in range(4)]
    firsts = {}
    while engine.busy:
        firsts |= {event.request_id: backend.now for event in engine.step()}
    assert [firsts[request_id] for request_id in ids] == pytest.approx([0.257, 0.514, 0.771, 1.028])
    assert StepTimes().budget(0, 1, limit=512) == 512


def test_prompts_without_answers_are_read_in_full_chunks():
    """No answer of theirs could begin earlier."""
    backend = TimedBackend(compute_bound)
    engine = backend.engine(4)
    for _ in range(4):
        engine.submit(Request(text(backend, 128), 0))
    while engine.busy:
        engine.step()
    assert [sum(batch) for batch in backend.batches] == [512]


def test_the_budget_follows_the_load_of_the_machine():
    backend = TimedBackend(compute_bound)
    engine = backend.engine(2)
    engine.submit(Request(text(backend, 30), 4000))
    for _ in range(10):
        engine.step()
    engine.submit(Request(text(backend, 8000), 1))
    for _ in range(50):
        engine.step()
    backend.cost = lambda tokens: 0.001 * len(backend.batches[-1]) + 0.006 * tokens  # prompt tokens take three times
    for _ in range(300):
        engine.step()
    for batch in backend.batches[-100:]:
        assert len(batch) == 1 or backend.cost(sum(batch)) <= 1.3 * MAX_SLOWDOWN * backend.cost(1) or batch[1] == 4


def run_answer(cost: Callable[[int], float], repeats: float, speculate: bool, noise: float = 0.05) -> tuple:
    """Returns (time, tokens, share of the tokens that were guessed) of an answer of 1,000 tokens."""
    backend = TimedBackend(cost, noise, repeats)
    engine = backend.engine()
    engine.submit(Request(text(backend, 300), 1000, speculate=speculate))
    tokens = []
    while engine.busy:
        tokens += [event.token for event in engine.step()]
    return backend.now, tokens, 1 - (len(backend.batches) - 1) / 999


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("repeats", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_speculation_is_never_slower_than_plain_decoding(cost, repeats):
    plain, expected, _ = run_answer(cost, repeats, False)
    seconds, tokens, _ = run_answer(cost, repeats, True)
    assert tokens == expected
    assert seconds <= plain / 0.98


@pytest.mark.parametrize("cost", [memory_bound, in_tiles])
def test_speculation_pays_for_text_that_repeats_itself(cost):
    plain, _, _ = run_answer(cost, 1.0, False)
    seconds, _, guessed = run_answer(cost, 1.0, True)
    assert guessed > 0.8
    assert seconds < plain / 4


def test_speculation_switches_itself_off_and_on():
    """The text repeats itself from position 1000 on; from position 2000 on, guesses save no time."""
    backend = TimedBackend(memory_bound, 0.05)
    for position in range(1000, 3300):
        backend.texts[position] = backend.texts[position - 12]
    engine = backend.engine()
    engine.submit(Request(text(backend, 300), 3000, speculate=True))
    positions, position = [], 300
    while engine.busy:
        if position > 2000:
            backend.cost = lambda tokens: 0.0025 * tokens - 0.0005
        position += len(engine.step())
        positions.append((position, backend.batches[-1][0]))
    guesses = [np.mean([count - 1 for at, count in positions if low < at <= low + 350]) for low in (600, 1050, 2900)]
    assert guesses[0] < 0.5
    assert guesses[1] > 4
    assert guesses[2] < 0.2


def test_a_guess_is_as_long_as_measured_times_and_its_chances_justify():
    times = StepTimes()
    assert guess_length(0.9, 7, times) == 0  # the time without a guess is not known
    times.record(1, 0, 0.020)
    times.record(4, 0, 0.024)
    times.record(8, 0, 0.100)
    assert guess_length(0.95, 7, times) == 3
    assert guess_length(0.95, 2, times) == 1
    assert guess_length(0.05, 7, times) == 0
    assert guess_length(0.95, 0, times) == 0
    for _ in range(20):
        times.record(8, 0, 0.024)  # the average decreases
    assert guess_length(0.95, 7, times) == 7


def test_requests_that_run_together_are_not_guessed():
    backend = TimedBackend(memory_bound, repeats=1.0)
    engine = backend.engine(2)
    for length, count in ((300, 100), (300, 200)):
        engine.submit(Request(text(backend, length), count, speculate=True))
    while len(engine.scheduler.running) + len(engine.scheduler.waiting) > 1:
        engine.step()
    together, alone = backend.batches.index([1, 1]), len(backend.batches)  # before, they read their prompts
    assert backend.batches[together:alone] == [[1, 1]] * (alone - together)
    assert alone - together > 50
    while engine.busy:
        engine.step()
    assert max(max(batch) for batch in backend.batches[alone:]) == 8


def test_right_guesses_are_counted_by_position():
    """A guess is right at a position only if it is right at all positions before."""
    backend = TimedBackend(memory_bound, repeats=0.9)
    engine = backend.engine()
    engine.submit(Request(text(backend, 300), 200, speculate=True))
    while engine.busy:
        engine.step()
    numbers = engine.statistics()
    counts = [numbers.accepted_positions[position] for position in sorted(numbers.accepted_positions)]
    assert list(range(len(counts))) == sorted(numbers.accepted_positions)
    assert sum(counts) == numbers.accepted_tokens > 50
    assert counts == sorted(counts, reverse=True) and counts[0] <= numbers.drafts


def test_times_that_were_not_measured_are_predicted():
    times = StepTimes()
    times.record(0, 512, 1.024)
    times.record(5, 0, 0.014)
    assert (times.predict(5), times.predict(8)) == pytest.approx((0.014, 0.016))
    for _ in range(200):
        times.record(1, 0, 0.010)
    assert times.plain(5) is None  # measured too long ago


def test_prompt_tokens_that_take_almost_no_time_do_not_overflow():
    """On a busy machine, steps that only decode may repeatedly be slower than steps that also read a prompt."""
    times = StepTimes()
    times.record(decoded=0, read=64, seconds=0.1)
    for _ in range(3000):
        times.record(decoded=4, read=0, seconds=0.02)
        times.record(decoded=4, read=16, seconds=0.01)
    assert times.budget(4, 1, limit=512) == 508


def test_a_prompt_is_read_in_large_parts_if_a_step_has_a_fixed_cost() -> None:
    """As on a GPU: steps that only decode take 1 ms, and all others 15 ms."""
    backend = TimedBackend(lambda tokens: 0.001 if tokens == 1 else 0.015 + 0.00003 * tokens)
    engine = backend.engine(2)
    engine.submit(Request(text(backend, 600), 4000))
    for _ in range(30):
        engine.step()
    backend.batches.clear()
    time_to_first_token(backend, engine, text(backend, 4000))
    assert sum(len(batch) > 1 for batch in backend.batches) < 20
    engine.submit(Request(text(backend, 4000), 1))
    backend.batches.clear()
    while len(engine.scheduler.running) + len(engine.scheduler.waiting) > 1:
        engine.step()
    assert sum(len(batch) > 1 for batch in backend.batches) < 12


@pytest.mark.parametrize("slow", [1, 2])
def test_a_few_slow_reads_are_not_a_fixed_cost(slow):
    """For example the first short prompts after an idle time, when no weights are in a cache."""
    times = StepTimes()
    for _ in range(4):
        times.record(decoded=0, read=512, seconds=0.5)
        times.record(decoded=8, read=0, seconds=0.02)
    undisturbed = times.budget(8, 1, limit=512)
    assert undisturbed < 32
    for _ in range(slow):
        times.record(decoded=0, read=20, seconds=0.4)
    assert times.budget(8, 1, limit=512) <= undisturbed
    times.record(decoded=0, read=20, seconds=0.02)
    times.record(decoded=0, read=20, seconds=0.4)
    assert times.budget(8, 1, limit=512) <= undisturbed
