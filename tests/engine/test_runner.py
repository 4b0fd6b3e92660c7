"""`Runner` and `Stream` on a fake engine that counts: threads, asyncio, deletion, errors, closing."""

from __future__ import annotations

import _thread
import asyncio
import gc
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from puna.engine import Event, Request, Runner
from puna.errors import BackendError, RequestError
from tests.architecture.source_tree import ROOT
from tests.helpers.interrupts import aimed_interrupts


class CountingEngine:
    """An engine whose answers are 0, 1, 2, ... A step waits until `gate` is set."""

    def __init__(self) -> None:
        self.requests: dict[int, list[int]] = {}  # [tokens generated, max_tokens]
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.on_step = lambda: None
        self.closings = 0
        self.backend = SimpleNamespace(name="counting")
        self._last = 0

    def close(self):
        self.closings += 1

    def submit(self, request):
        if request.prompt_ids == (13,):
            raise RequestError("no 13")
        self._last += 1
        self.requests[self._last] = [0, request.max_tokens]
        return self._last

    def cancel(self, request_id):
        self.requests.pop(request_id, None)

    @property
    def busy(self):
        return bool(self.requests)

    def step(self):
        self.stepping.set()
        assert self.gate.wait(20)
        self.on_step()
        events = []
        for request_id, state in list(self.requests.items()):
            reason = "length" if state[0] + 1 >= state[1] else None
            events.append(Event(request_id, token=state[0], finish_reason=reason))
            state[0] += 1
            if reason is not None:
                del self.requests[request_id]
        return events


class Tokens:
    """A result whose pieces are the tokens; raises an exception for the token `wrong`."""

    def __init__(self, count: int, prompt: int = 1, wrong: int | None = None) -> None:
        self.request = Request((prompt,), count)
        self.wrong = wrong
        self.error: Exception | None = None
        self.tokens: list[int] = []
        self.finished_by_engine = False
        self._taken = 0

    @property
    def finished(self):
        return self.finished_by_engine or self.error is not None

    def feed(self, event, started, ended):
        assert started <= ended
        if event.token == self.wrong:
            raise ValueError("a wrong token")
        self.tokens.append(event.token)
        self.finished_by_engine = event.finish_reason is not None

    def take(self):
        taken, self._taken = self._taken, len(self.tokens)
        return self.tokens[taken:]


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def runner(engine) -> Iterator[Runner]:
    runner = Runner(engine)
    yield runner
    engine.gate.set()
    runner.close()


def settle(runner: Runner) -> None:
    """Waits until the stepping thread has read all earlier messages."""
    runner.submit([Tokens(1)]).wait()


def wait_for_end(runner: Runner) -> None:
    """Waits until the stepping thread has ended."""
    assert runner._stepper.is_running.acquire(timeout=20)
    runner._stepper.is_running.release()


def wait_until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition does not hold after 20 s")


def hold(engine: CountingEngine) -> None:
    """Makes the engine wait in its next step."""
    engine.gate.clear()
    engine.stepping.clear()


def test_a_stream_yields_pieces_in_order(runner):
    assert list(runner.stream(Tokens(5))) == [0, 1, 2, 3, 4]
    indexed = list(runner.stream_batch([Tokens(2), Tokens(3)]))
    assert sorted(indexed) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    results = [Tokens(3), Tokens(4)]
    runner.submit(results).wait()
    assert [result.tokens for result in results] == [[0, 1, 2], [0, 1, 2, 3]]


def test_asyncio_iterates_the_same_streams(runner):
    async def collect(count):
        return [piece async for piece in runner.stream(Tokens(count))]

    async def everything():
        await runner.submit([Tokens(3)]).wait_async()
        return await asyncio.gather(*(collect(count) for count in range(1, 200)))

    assert asyncio.run(everything()) == [list(range(count)) for count in range(1, 200)]
    assert asyncio.run(collect(5)) == list(range(5))  # in another event loop


@pytest.mark.parametrize(("streams", "least", "most"), [(16, 30, 30), (64, 1, 10)])
def test_asyncio_is_notified_of_several_tokens_at_once_if_many_streams_run(
    engine, runner, monkeypatch, streams, least, most
):
    counts: Counter[object] = Counter()
    monkeypatch.setattr("puna.engine.runner._set_all", lambda events: [counts.update([e]) or e.set() for e in events])

    async def collect():
        return [token async for token in runner.stream(Tokens(30))]

    async def everything():
        hold(engine)
        tasks = [asyncio.create_task(collect()) for _ in range(streams)]
        await asyncio.sleep(0)  # each task begins to wait
        engine.gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(everything()) == [list(range(30))] * streams
    assert least <= min(counts.values()) and max(counts.values()) <= most


def test_the_first_token_is_announced_at_once_if_many_streams_run(engine, runner):
    async def collect(stream):
        first = await stream.__anext__()
        received.append(first)
        return [first] + [token async for token in stream]

    def step():
        steps.append(len(received))
        counts = [count for count, _ in engine.requests.values()]
        if len(counts) == 64 and min(counts) == 1:  # the step after the last first token
            wait_until(lambda: len(received) == 64)

    async def everything():
        tasks = [asyncio.create_task(collect(runner.stream(Tokens(9)))) for _ in range(64)]
        await asyncio.sleep(0)  # each task begins to wait
        engine.gate.set()
        return await asyncio.gather(*tasks)

    received: list[int] = []
    steps: list[int] = []
    hold(engine)
    engine.on_step = step
    assert asyncio.run(everything()) == [list(range(9))] * 64
    assert received == [0] * 64
    assert len(steps) < 20


def test_the_requests_of_a_batch_start_in_the_same_step(engine, runner):
    sizes = []
    engine.on_step = lambda: sizes.append(len(engine.requests))
    runner.submit([Tokens(2) for _ in range(7)]).wait()
    assert sizes == [7, 7]


def test_a_stream_that_nothing_reads_delays_no_other(runner):
    unread = runner.stream(Tokens(1000))
    assert [list(runner.stream(Tokens(20))) for _ in range(5)] == [list(range(20))] * 5
    assert list(unread) == list(range(1000))


@pytest.mark.parametrize("state", ["new", "begun", "in a cycle"])
def test_a_deleted_stream_ends_its_requests(engine, runner, state):
    hold(engine)
    stream = runner.stream_batch([Tokens(10**6), Tokens(10**6)])
    assert engine.stepping.wait(20)
    if state == "begun":
        engine.gate.set()
        next(stream)
    if state == "in a cycle":
        stream.itself = stream
    del stream
    gc.collect()
    engine.gate.set()
    settle(runner)
    assert not engine.busy
    assert not runner._stepper._jobs


def test_a_stream_that_is_deleted_before_the_thread_reads_its_request_is_never_submitted(engine, runner):
    hold(engine)
    waiting = runner.stream(Tokens(3))
    assert engine.stepping.wait(20)
    runner.stream(Tokens(5))
    runner.stream(Tokens(5)).close()
    engine.gate.set()
    assert list(waiting) == [0, 1, 2]
    settle(runner)
    assert engine._last == 2


def test_a_closed_stream_ends_and_may_be_closed_again(engine, runner):
    stream = runner.stream(Tokens(10**6))
    assert next(stream) == 0
    stream.close()
    stream.close()
    assert list(stream) == []
    settle(runner)
    assert not engine.busy


def test_closing_a_stream_ends_an_iteration_in_another_thread(engine, runner):
    hold(engine)
    stream = runner.stream(Tokens(10**6))
    rest: list[int] = []
    threads = [threading.Thread(target=lambda: rest.extend(stream)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert engine.stepping.wait(20)
    stream.close()
    engine.gate.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_closing_a_stream_before_its_request_is_submitted_ends_an_iteration(engine, runner):
    hold(engine)
    first = runner.stream(Tokens(3))
    assert engine.stepping.wait(20)
    stream, other = runner.stream(Tokens(5)), runner.stream(Tokens(5))
    thread = threading.Thread(target=lambda: list(stream), daemon=True)
    thread.start()

    async def iterate() -> list[int]:
        task = asyncio.create_task(_collect(other))
        await asyncio.sleep(0)  # the task begins to wait
        stream.close()
        other.close()
        engine.gate.set()
        return await asyncio.wait_for(task, 20)

    assert asyncio.run(iterate()) == []
    thread.join(20)
    assert not thread.is_alive()
    assert list(first) == [0, 1, 2]


async def _collect(stream):
    return [item async for item in stream]


def test_several_threads_that_read_one_stream_all_end(runner):
    stream = runner.stream(Tokens(300))
    pieces: list[int] = []
    threads = [threading.Thread(target=lambda: pieces.extend(stream)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(pieces) == list(range(300))


def test_an_error_of_one_request_leaves_the_others(engine, runner):
    stream = runner.stream(Tokens(10, wrong=3))
    with pytest.raises(BackendError, match="ValueError: a wrong token"):
        list(stream)
    assert list(stream) == []
    batch = [Tokens(10), Tokens(10, wrong=5)]
    with pytest.raises(BackendError, match="wrong token"):
        runner.submit(batch).wait()
    with pytest.raises(RequestError, match="no 13"):
        runner.submit([Tokens(5, prompt=13)]).wait()
    settle(runner)
    assert not engine.busy


def test_an_error_of_a_step_ends_its_requests_and_leaves_a_usable_engine(engine, runner):
    def fail():
        if len(engine.requests) == 3:
            engine.on_step = lambda: None
            raise MemoryError("3 GiB")

    engine.on_step = fail
    streams = [runner.stream(Tokens(10**6)) for _ in range(3)]
    for stream in streams:
        with pytest.raises(BackendError, match=r"memory is exhausted \(3 GiB\)") as caught:
            list(stream)
        assert isinstance(caught.value.__cause__, MemoryError)
    assert list(runner.stream(Tokens(4))) == [0, 1, 2, 3]


def test_an_error_keeps_neither_the_model_nor_the_variables_of_the_step_in_memory():
    class Tensor:
        pass

    def fail():
        tensor = Tensor()
        tensors.add(tensor)
        raise MemoryError("3 GiB")

    tensors: weakref.WeakSet[Tensor] = weakref.WeakSet()
    engine = CountingEngine()
    engine.on_step = fail
    runner = Runner(engine)
    deleted = weakref.ref(runner._stepper)  # it refers to the model
    gc.collect()
    gc.disable()
    try:
        text = ""
        try:
            runner.submit([Tokens(10)]).wait()
        except BackendError as exc:
            text = "".join(traceback.format_exception(exc))
            assert not tensors
        assert "3 GiB" in text
        assert "in fail" in text
        is_running = runner._stepper.is_running
        del engine, runner
        assert is_running.acquire(timeout=20)
        wait_until(lambda: deleted() is None)
    finally:
        gc.enable()


def test_an_error_in_the_engine_itself_closes_the_model(engine, runner):
    def fail(request_id):
        raise RuntimeError("broken")

    stream = runner.stream(Tokens(10**6))
    next(stream)
    waiting = runner.stream(Tokens(10**6))
    engine.cancel = fail
    stream.close()
    with pytest.raises(BackendError, match=r"closed|RuntimeError: broken"):
        list(waiting)
    wait_for_end(runner)
    with pytest.raises(BackendError, match="closed"):
        runner.stream(Tokens(1))
    assert engine.closings == 1


def test_closing_fails_unfinished_requests_and_ends_the_thread(engine, runner):
    hold(engine)
    errors: list[str] = []

    def wait():
        with pytest.raises(BackendError) as caught:
            runner.submit([Tokens(10**6)]).wait()
        errors.append(str(caught.value))

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    stream = runner.stream(Tokens(10**6))
    assert engine.stepping.wait(20)
    threading.Timer(0.05, engine.gate.set).start()
    runner.close()
    for thread in threads:
        thread.join(20)
    assert errors == ["the model is closed; load it again"] * 4
    with pytest.raises(BackendError, match="the model is closed; load it again"):
        next(stream)
    assert list(stream) == []
    wait_for_end(runner)
    assert engine.closings == 1
    runner.close()
    with pytest.raises(BackendError, match="closed"):
        runner.stream(Tokens(1))


def test_a_request_at_the_moment_of_closing_never_hangs(engine):
    for delay in range(60):
        runner = Runner(CountingEngine())
        outcomes: list[object] = []

        def ask(runner=runner, outcomes=outcomes):
            with suppress(BackendError):
                while True:
                    runner.submit([Tokens(2)]).wait()
            outcomes.append("ended")

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(delay * 2e-5)
        runner.close()
        for thread in threads:
            thread.join(20)
        assert outcomes == ["ended"] * 3


def test_interrupts_of_the_first_request_and_of_closing_leave_a_usable_runner():
    interrupted = [0, 0]
    with aimed_interrupts(seed=0, most=3e-4) as interrupt:
        for _ in range(400):
            engine = CountingEngine()
            runner = Runner(engine)
            interrupted[0] += interrupt(lambda runner=runner: runner.submit([Tokens(3)]).wait())
            assert list(runner.stream(Tokens(3))) == [0, 1, 2]
            assert not engine.busy
            interrupted[1] += interrupt(runner.close)
            runner.close()
            assert runner._stepper.freed
            wait_for_end(runner)
            assert engine.closings >= 1
    assert min(interrupted) > 20


def test_closing_frees_the_model_although_no_thread_can_be_started(engine, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    runner = Runner(engine)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with pytest.raises(BackendError, match="cannot be started"):
        runner.submit([Tokens(3)])
    runner.close()
    assert engine.closings == 1
    with pytest.raises(BackendError, match="closed"):
        runner.submit([Tokens(3)])


EXIT = """
import sys, time
from tests.engine.test_runner import CountingEngine, Runner, Tokens
engine = CountingEngine()
engine.backend.name = sys.argv[1]
def work():
    time.sleep(float(sys.argv[2]))
    print("completed", flush=True)
engine.on_step = work
stream = Runner(engine).stream(Tokens(10))
assert engine.stepping.wait(20)
"""


@pytest.mark.parametrize(("backend", "seconds", "output"), [("torch", "1.5", "completed\n"), ("native", "100", "")])
def test_the_exit_of_the_program_waits_for_a_long_step_of_pytorch(backend, seconds, output):
    command = [sys.executable, "-c", EXIT, backend, seconds]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (run.returncode, run.stdout, run.stderr) == (0, output, "")


def test_deleting_the_runner_ends_the_thread_and_frees_the_engine():
    engine = CountingEngine()
    deleted = weakref.ref(engine)
    runner = Runner(engine)
    is_running = runner._stepper.is_running
    stream = runner.stream(Tokens(50))
    del engine, runner
    assert list(stream) == list(range(50))  # the stream keeps the runner alive
    assert is_running.locked()
    del stream
    assert is_running.acquire(timeout=20)
    gc.collect()
    wait_until(lambda: deleted() is None)


def test_an_idle_thread_keeps_no_result_alive(runner):
    result = Tokens(3)
    deleted = weakref.ref(result)
    runner.submit([result]).wait()
    del result
    settle(runner)
    assert deleted() is None


def test_a_failed_stream_is_not_part_of_a_reference_cycle(runner):
    gc.collect()
    gc.disable()
    try:
        stream = runner.stream(Tokens(9, wrong=0))
        deleted = weakref.ref(stream)
        with suppress(BackendError):
            next(stream)
        del stream
        assert deleted() is None
    finally:
        gc.enable()


class Finaliser:
    """Calls a function when it is deleted."""

    def __init__(self, call):
        self._call = call

    def __del__(self):
        self._call()


def test_finalisers_in_the_stepping_thread_may_close_the_model_but_not_wait_for_it(engine, runner):
    errors: list[Exception] = []

    def ask():
        assert threading.get_ident() == runner._stepper.ident
        try:
            runner.submit([Tokens(1)]).wait()
        except BackendError as exc:
            errors.append(exc)

    waste = [Finaliser(runner.close), Finaliser(ask)]
    engine.on_step = lambda: waste.pop() if waste else None
    with pytest.raises(BackendError, match="closed"):
        list(runner.stream(Tokens(10**6)))
    assert "a finaliser" in str(errors[0])
    wait_for_end(runner)
    assert runner._stepper.freed


def test_a_cancelled_task_ends_its_request(engine, runner):
    async def cancel_some():
        async def consume(stream):
            return [piece async for piece in stream]

        tasks = [asyncio.create_task(consume(runner.stream(Tokens(10**6)))) for _ in range(5)]
        tasks += [asyncio.create_task(runner.submit([Tokens(10**6)]).wait_async()) for _ in range(5)]
        finite = asyncio.create_task(consume(runner.stream(Tokens(100))))
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        return await finite

    assert asyncio.run(cancel_some()) == list(range(100))
    settle(runner)
    assert not engine.busy


def test_a_closed_event_loop_does_not_affect_other_consumers(engine, runner):
    loop = asyncio.new_event_loop()
    stream = runner.stream(Tokens(10**6))
    assert loop.run_until_complete(anext(stream)) == 0
    with suppress(asyncio.TimeoutError):
        loop.run_until_complete(asyncio.wait_for(asyncio.sleep(1), 0.001))
    loop.close()
    assert list(runner.stream(Tokens(50))) == list(range(50))
    del stream
    settle(runner)
    assert not engine.busy


def test_closing_ends_asyncio_consumers_with_an_error(engine, runner):
    async def consume():
        stream = runner.stream(Tokens(10**6))
        await anext(stream)
        closing = asyncio.to_thread(runner.close)
        with pytest.raises(BackendError, match="closed"):
            await asyncio.gather(closing, stream.wait_async())
        with pytest.raises(BackendError, match="closed"):
            await anext(runner.stream(Tokens(1)))

    asyncio.run(consume())
