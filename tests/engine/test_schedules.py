"""Answers in random schedules on a small cache are equal, bit for bit, to those of each request alone.

The schedules have adapters, shared prefixes, several answers to one prompt, preemptions, chunks of all sizes,
cancellations, priorities, speculation, predictions, scored prompts, hidden states, log-probabilities, several threads
and interrupted steps. The measured times of steps, which decide how many tokens a step has, are random. Some engines
find prefixes that an earlier one has written to the disk, and some of these files are damaged. Counters prove that all
of these have happened.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from pathlib import Path

import numpy as np
import pytest

from puna.backend import PAGE, Backend, Batch, Outputs
from puna.checkpoint import open_checkpoint
from puna.engine import DiskCache, Engine, Event, LoadedAdapter, Request, Runner, Sampling, TokenLogprobs
from puna.model_adapters import ModelAdapters
from puna.native import NativeBackend
from tests.engine.test_disk_cache import damage_files
from tests.golden.files import LAYOUTS
from tests.helpers.adapters import KINDS, write_random_adapter

VOCAB = 512
CONTEXT = 256


@dataclass
class Result:
    """What the events of one request contain."""

    tokens: list[int] = field(default_factory=list)
    end: object = None  # finish reason and stop id
    read: int = 0
    cached: int = 0
    logits: list[np.ndarray] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    hidden: list[np.ndarray] = field(default_factory=list)

    def add(self, event: Event) -> None:
        assert event.error is None and self.end is None
        self.tokens += [] if event.token is None else [event.token]
        self.read += event.prompt_tokens
        self.cached += event.cached_tokens
        self.logits += [] if event.logits is None else [event.logits]
        self.logprobs += [] if event.logprobs is None else [event.logprobs]
        self.hidden += [] if event.hidden is None else [event.hidden]
        self.end = event.finish_reason and (event.finish_reason, event.stop_id)


class SmallBackend(NativeBackend):
    """A native backend with a smaller cache, whose forward pass is interrupted at random before or after it has run."""

    random = np.random.default_rng(0)
    interrupts = 0.0

    def forward(self, batch: Batch) -> Outputs:
        luck = self.random.random()
        if luck < self.interrupts / 2:
            raise KeyboardInterrupt
        outputs = super().forward(batch)
        if luck < self.interrupts:
            raise KeyboardInterrupt
        return outputs


Backends = tuple[SmallBackend, NativeBackend]
Adapters = Sequence[LoadedAdapter | None]


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    """Two backends with the same model: one for the schedules, and one for requests that run alone, in one thread."""
    checkpoints = [open_checkpoint(LAYOUTS["hf"]) for _ in range(2)]
    small = SmallBackend(checkpoints[0].config, checkpoints[0].tensors, 2, slots=4)
    large = NativeBackend(checkpoints[1].config, checkpoints[1].tensors, 1, slots=4)
    yield small, large
    small.close()
    large.close()


@pytest.fixture(scope="module")
def adapters(backends: Backends, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """Adapters of several kinds, which both backends have loaded under the same numbers, and None."""
    checkpoint, folder = open_checkpoint(LAYOUTS["hf"]), tmp_path_factory.mktemp("adapters")
    kinds = [kind for kind in KINDS if kind not in ("classes", "long_prefix")]
    paths = {kind: write_random_adapter(folder / kind, checkpoint.config, kind) for kind in kinds}
    first, second = ([ModelAdapters(paths, checkpoint, backend).loaded(kind) for kind in kinds] for backend in backends)
    assert [adapter and adapter.number for adapter in first] == [adapter and adapter.number for adapter in second]
    return [None, None, None, *first]


def run_alone(backend: Backend, request: Request) -> Result:
    """Runs a request without other requests and without a prefix cache."""
    engine, result = Engine(backend, 1, CONTEXT, prefix_cache=False), Result()
    engine.submit(request)
    while engine.busy:
        for event in engine.step():
            result.add(event)
    assert (result.read, result.cached) == (len(request.prompt_ids) - request.logits_from, 0)
    return result


def random_requests(random: np.random.Generator, positions: int, adapters: Adapters = (None,)) -> list[Request]:
    """Returns requests of up to this number of positions; many of them begin with the same tokens."""
    texts = [random.integers(3, VOCAB, CONTEXT) for _ in range(2)]
    texts.append(np.tile(random.integers(3, VOCAB, 7), 40)[:CONTEXT])  # repetitive: guesses are often right
    requests: list[Request] = []
    while len(requests) < random.integers(3, 9):
        text = texts[random.integers(0, 3)].copy()
        text[random.integers(1, CONTEXT) :] = random.integers(3, VOCAB)
        adapter = adapters[random.integers(len(adapters))]
        longest = positions - (adapter.virtual_tokens if adapter else 0)
        length = int(random.choice([random.integers(1, longest), 64, 128, random.integers(60, 70)])) % longest or 1
        to_page = -(positions - longest + length) % PAGE  # the answer fills a page
        max_tokens = min(longest - length, int(random.choice([random.integers(0, 90), to_page, to_page + 1])))
        for _ in range(random.choice([1, 1, 3])):  # several answers to one prompt
            sampled = Sampling(0.9, repetition_penalty=float(random.choice([1.0, 1.3])), seed=int(random.integers(99)))
            sampling = Sampling() if random.random() < 0.4 else sampled
            requests.append(
                Request(
                    tuple(text[:length].tolist()),
                    max_tokens,
                    replace(sampling, logprobs=random.choice([None, 0, 3])),
                    frozenset(random.integers(3, VOCAB, random.choice([0, 0, 20])).tolist()),
                    prompt_logits=bool(random.random() < 0.15),
                    speculate=bool(random.random() < 0.4),
                    salt=str(random.choice(["", "", "", "other"])),
                    adapter=adapter,
                    priority=int(random.choice([0, 0, 0, 1, 2])),
                    prediction=tuple(text[length : length + int(random.choice([0, 0, 90]))].tolist()),
                )
            )
            if random.random() < 0.1:
                first = int(random.choice([0, length // 2, length - 1]))
                requests[-1] = replace(
                    requests[-1], max_tokens=0, prompt_logits=False, output="hidden", logits_from=first
                )
    return requests


def next_turn(request: Request, result: Result, positions: int) -> Request:
    """Returns a request that continues the answer of an earlier one."""
    longest = positions - request.virtual_tokens
    prompt = (*request.prompt_ids, *result.tokens, 5)
    max_tokens = min(longest - len(prompt[:longest]), 20)
    prediction = tuple(result.tokens)  # the answer may be similar to the first one
    return replace(
        request, prompt_ids=prompt[:longest], max_tokens=max_tokens, output="tokens", logits_from=0,
        prediction=prediction
    )  # fmt: skip


def run_schedule(
    backend: Backend,
    requests: list[Request],
    random: np.random.Generator,
    counts: Counter,
    disk: DiskCache | None = None,
) -> dict:
    """Runs requests that arrive and are cancelled at random; returns the results by index, without cancelled ones.

    Half of the answers get a second turn, which is added to `requests`.
    """
    clock = accumulate(random.exponential() for _ in count()).__next__
    sharing = bool(random.random() < 0.9)
    engine = Engine(backend, int(random.integers(1, 6)), prefix_cache=sharing, clock=clock, disk=disk)
    results: dict[int, Result] = {}
    waiting, indices, first_turns = list(enumerate(requests)), {}, len(requests)
    while waiting or engine.busy:
        while waiting and random.random() < 0.5:
            index, request = waiting.pop(0)
            indices[engine.submit(request)] = index
            results[index] = Result()
        engine.scheduler.chunk = int(random.choice([3, 17, 64, 100, 512]))
        counts["interrupts"] += 1
        with suppress(KeyboardInterrupt):
            events = engine.step()
            generated = [event.request_id for event in events if event.token is not None]
            counts["guessed"] += len(generated) - len(set(generated))
            for event in events:
                index = indices[event.request_id]
                if index in results:
                    results[index].add(event)
                    if event.finish_reason and index < first_turns and random.random() < 0.5:
                        turn = next_turn(requests[index], results[index], min(CONTEXT, backend.pages * PAGE))
                        waiting.append((len(requests), turn))
                        requests.append(turn)
            counts["interrupts"] -= 1
        if random.random() < 0.01:
            request_id = int(random.choice(list(indices) or [0]))
            engine.cancel(request_id)
            results.pop(indices.get(request_id, -1), None)
            counts["cancelled"] += 1
    pool = engine.pool
    assert pool.available == pool.pages
    assert sorted([*pool._free, *pool._idle, *range(pool._unused, pool.pages)]) == list(range(pool.pages))
    assert pool._references == {} == engine.scheduler._preempted
    registered = [page for pages in pool._pages_after.values() for page in pages.values()]
    assert sorted(registered) == sorted(pool._key_of) == sorted(pool._idle)
    assert sorted(pool._identities) == sorted(page for page, (_, ids) in pool._key_of.items() if len(ids) == PAGE)
    counts.update(predicted=engine.counters.accepted_prediction_tokens)
    counts.update(
        hits=pool.hits, copies=pool.copies, evictions=pool.evictions, preemptions=engine.scheduler.preemptions
    )
    return results


def run_restarts(
    backend: Backend, requests: list[Request], random: np.random.Generator, counts: Counter, folder: Path
) -> dict:
    """Runs some of the requests, and then the others with a new engine that finds the files of the first one."""
    results: dict[int, Result] = {}
    first, second = requests[::2], requests[1::2]
    requests.clear()
    for part in (first, second):
        disk = DiskCache(folder, int(random.choice([100, 1000])) * backend.page_bytes, bytes(32), backend)
        part_results = run_schedule(backend, part, random, counts, disk)
        results |= {len(requests) + index: result for index, result in part_results.items()}
        requests += part
        disk.close()
        counts.update(restored=disk.hits, saved=disk.saved)
        damage_files(sorted(folder.iterdir()), random)
    return results


def check_schedules(backends: Backends, adapters: Adapters, seeds: range, folder: Path) -> None:
    backend, alone = backends
    counts: Counter = Counter()
    backend.interrupts = 0.02
    for seed in seeds:
        random = backend.random = np.random.default_rng(seed)
        backend.pages = int(random.integers(2, 9))
        requests = random_requests(random, min(CONTEXT, backend.pages * PAGE), adapters)
        if seed % 3:
            results = run_schedule(backend, requests, random, counts)
        else:
            results = run_restarts(backend, requests, random, counts, folder / str(seed))
            shutil.rmtree(folder / str(seed))
        for index, result in results.items():
            request = requests[index]
            expected = run_alone(alone, request)
            assert (result.tokens, result.end) == (expected.tokens, expected.end), (seed, index)
            assert result.logprobs == expected.logprobs, (seed, index)
            assert result.read + result.cached == len(request.prompt_ids) - request.logits_from, (seed, index)
            for rows, expected_rows in ((result.logits, expected.logits), (result.hidden, expected.hidden)):
                assert len(rows) == 0 or np.array_equal(np.concatenate(rows), np.concatenate(expected_rows)), (
                    seed, index
                )  # fmt: skip
            assert bool(result.logits) == bool(expected.logits) == request.prompt_logits, (seed, index)
            assert bool(result.hidden) == bool(expected.hidden) == (request.output == "hidden"), (seed, index)
            counts.update(answers=1, tokens=len(result.tokens), cached=result.cached > 0)
            counts.update(logprobs=len(result.logprobs), hidden=len(result.hidden))
            counts.update(adapted=request.adapter is not None and result.cached > 0)
    names = "hits copies evictions preemptions guessed predicted logprobs hidden cancelled interrupts cached adapted"
    for name in [*names.split(), "restored"]:
        assert counts[name] > len(seeds) / 10, counts


class CollectedResult:
    """Collects the events of a request that runs in the thread of a `Runner`."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.error: Exception | None = None
        self.result = Result()

    @property
    def finished(self) -> bool:
        return self.error is not None or self.result.end is not None

    def feed(self, event: Event, started: float, ended: float) -> None:
        self.error = event.error
        if event.error is None:
            self.result.add(event)

    def take(self) -> list[str]:
        return []


def submit_all(runner: Runner, results: list[tuple[CollectedResult, bool]]) -> None:
    """Runs requests one after another; cancels a request if the second value is True."""
    for result, is_cancelled in results:
        stream = runner.submit([result])
        if is_cancelled:
            stream.close()
        else:
            stream.wait()


def run_in_threads(engine: Engine, requests: list[Request], random: np.random.Generator) -> list[CollectedResult]:
    """Runs requests that eight threads submit; returns the results without those of cancelled requests."""
    results = [(CollectedResult(request), bool(random.random() < 0.2)) for request in requests]
    runner = Runner(engine)
    stepper = runner._stepper
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(submit_all, [runner] * 8, [results[number::8] for number in range(8)]))
    del runner
    while stepper.is_running.locked():
        time.sleep(0.001)
    return [result for result, is_cancelled in results if not is_cancelled]


def check_threads(backends: Backends, seeds: range) -> None:
    backend, alone = backends
    backend.interrupts = 0.0
    counts: Counter = Counter()
    for seed in seeds:
        random = np.random.default_rng(seed)
        backend.pages = int(random.integers(2, 9))
        requests = random_requests(random, min(CONTEXT, backend.pages * PAGE)) * 2
        clock = accumulate(np.random.default_rng(seed).exponential() for _ in count()).__next__
        engine = Engine(backend, int(random.integers(1, 6)), clock=clock)
        results = run_in_threads(engine, requests, random)
        for index, collected in enumerate(results):
            expected = run_alone(alone, collected.request)
            assert collected.error is None and collected.finished, (seed, index, collected.error)
            assert (collected.result.tokens, collected.result.end) == (expected.tokens, expected.end), (seed, index)
            assert collected.result.logprobs == expected.logprobs, (seed, index)
        counts.update(hits=engine.pool.hits, copies=engine.pool.copies, preemptions=engine.scheduler.preemptions)
        counts.update(cancelled=len(requests) - len(results))
        assert engine.pool.available == engine.pool.pages
    assert min(counts[name] for name in ("hits", "copies", "preemptions", "cancelled")) > len(seeds) / 10, counts


def test_answers_are_equal_for_several_threads(backends: Backends) -> None:
    check_threads(backends, range(15))


@pytest.mark.slow
@pytest.mark.soak
def test_answers_are_equal_for_several_threads_in_more_schedules(
    backends: Backends,
) -> None:
    check_threads(backends, range(15, 500))


def test_answers_are_equal_in_random_schedules(backends: Backends, adapters: Adapters, tmp_path: Path) -> None:
    check_schedules(backends, adapters, range(40), tmp_path)


@pytest.mark.slow
@pytest.mark.soak
def test_answers_are_equal_in_two_thousand_random_schedules(
    backends: Backends, adapters: Adapters, tmp_path: Path
) -> None:
    check_schedules(backends, adapters, range(40, 2000), tmp_path)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_answers_of_pytorch_are_most_likely_in_random_schedules(device: str, backends: Backends) -> None:
    """Sharing and recomputation change the logits of PyTorch by rounding, so tokens are compared with native logits."""
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    from puna.model import TorchBackend

    backend = TorchBackend.from_pretrained(LAYOUTS["hf"], device=device, dtype="float32", slots=4)
    backend.chooses_tokens = True  # also on the CPU
    counts: Counter = Counter()
    for seed in range(12):
        random = np.random.default_rng(seed)
        backend.pages = int(random.integers(2, 9))
        requests = random_requests(random, min(CONTEXT, backend.pages * PAGE))
        requests = [replace(request, sampling=Sampling()) for request in requests]
        for index, result in run_schedule(backend, requests, random, counts).items():
            prompt = requests[index].prompt_ids
            scored = Request((*prompt, *result.tokens), 0, prompt_logits=True)
            logits = np.concatenate(run_alone(backends[1], scored).logits)
            chosen = logits[np.arange(len(prompt) - 1, len(scored.prompt_ids) - 1), result.tokens]
            assert result.end and (chosen > logits[len(prompt) - 1 : -1].max(axis=-1) - 1e-3).all(), (seed, index)
            assert len(result.logits) == 0 or np.allclose(
                np.concatenate(result.logits), logits[: len(prompt)], atol=1e-3
            ), (seed, index)
            if result.hidden:
                expected_hidden = np.concatenate(run_alone(backends[1], requests[index]).hidden)
                assert np.allclose(np.concatenate(result.hidden), expected_hidden, atol=1e-3), (seed, index)
            counts.update(answers=1, cached=result.cached > 0)
    assert min(counts["hits"], counts["evictions"], counts["preemptions"], counts["cached"]) > 0
