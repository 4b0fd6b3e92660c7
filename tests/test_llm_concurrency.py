"""One `LLM` under interrupts, garbage collections, forks and many callers: every answer equals the solo answer."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from puna import LLM, AsyncLLM, Completion
from tests.helpers.interrupts import aimed_interrupts

PROMPTS = [[5, 6, 7], [9, 8], [40, 41, 42, 43], [100], [7, 7, 7]]


@pytest.fixture(scope="module")
def llm(tiny_model):
    return LLM(tiny_model, "native", threads=1, max_batch=4)


def check_nothing_is_left(llm: LLM) -> None:
    """Asserts that no request and no page in use is left after all earlier messages have been read."""
    llm.generate([1], max_tokens=0)
    assert not llm._engine.busy
    assert llm._engine.pool.available == llm._engine.pool.pages
    assert not llm._runner._stepper._jobs


@pytest.fixture(scope="module")
def answers(llm) -> dict[tuple[int, int], tuple[int, ...]]:
    """Solo answers by (index of the prompt, max_tokens)."""
    return {
        (index, count): llm.generate(prompt, max_tokens=count).ids
        for index, prompt in enumerate(PROMPTS)
        for count in (4, 20, 60)
    }


@pytest.mark.parametrize("rounds", [600, pytest.param(20_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["generate", "stream", "nll"])
def test_interrupts_at_any_point_leave_a_usable_model(llm, answers, rounds, kind):
    calls = {
        "generate": lambda: llm.generate(PROMPTS[0], max_tokens=4),
        "stream": lambda: list(llm.stream(PROMPTS[0], max_tokens=4)),
        "nll": lambda: llm.nll(PROMPTS[2]),
    }
    loss = llm.nll(PROMPTS[2])
    interrupted = 0
    with aimed_interrupts(seed=len(kind), most=1e-3) as interrupt:
        for _ in range(rounds):
            interrupted += interrupt(calls[kind])
            check_nothing_is_left(llm)
        assert interrupted > rounds / 10
    assert llm.generate(PROMPTS[0], max_tokens=4).ids == answers[0, 4]
    assert (llm.nll(PROMPTS[2]) == loss).all()


def test_interrupts_of_the_main_thread_leave_the_answers_of_other_threads(llm, answers):
    wrong: list[object] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        source = random.Random(number)
        while not stop.is_set():
            key = source.randrange(len(PROMPTS)), source.choice([4, 20, 60])
            if llm.generate(PROMPTS[key[0]], max_tokens=key[1]).ids != answers[key]:
                wrong.append(key)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with aimed_interrupts(seed=1, most=2e-3) as interrupt:
        interrupted = sum(interrupt(lambda: llm.generate(PROMPTS[1], max_tokens=20)) for _ in range(200))
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong
    assert interrupted > 20
    check_nothing_is_left(llm)


@pytest.mark.parametrize("receiver", ["main thread", "stepping thread"])
def test_ctrl_c_ends_the_wait_for_a_long_step(llm, monkeypatch, receiver):
    """The system may deliver a signal to any thread of the process."""
    forward = llm._backend.forward

    def long_forward(batch):
        started.set()
        release.wait(20)
        ended.append(True)
        return forward(batch)

    started, release = threading.Event(), threading.Event()
    ended: list[bool] = []
    monkeypatch.setattr(llm._backend, "forward", long_forward)

    def send():
        started.wait(20)
        main = receiver == "main thread"
        signal.pthread_kill(threading.main_thread().ident if main else llm._runner._stepper.ident, signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS[0], max_tokens=100)
    assert not ended
    release.set()
    thread.join()
    check_nothing_is_left(llm)
    assert len(ended) == 2  # the interrupted step, and that of the check: the request ended after its first step


class Cycle:
    """An object that only the cyclic garbage collector deletes."""

    def __init__(self, stream: object) -> None:
        self.stream = stream
        self.itself = self


def test_the_garbage_collector_may_delete_streams_at_any_point(llm, answers):
    thresholds = gc.get_threshold()
    source = random.Random(0)
    try:
        for _ in range(150):
            gc.disable()
            for _ in range(2):
                stream = llm.stream(PROMPTS[1], max_tokens=100)
                for _ in range(source.randrange(3)):
                    next(stream, None)
                Cycle(stream)
                del stream
            gc.set_threshold(gc.get_count()[0] + source.randrange(1, 150), 1000, 1000)
            gc.enable()
            assert llm.generate(PROMPTS[0], max_tokens=20).ids == answers[0, 20]
        gc.set_threshold(1, 1, 1)
        for _ in range(5):
            Cycle(llm.stream(PROMPTS[1], max_tokens=100))
            assert llm.generate(PROMPTS[0], max_tokens=20).ids == answers[0, 20]
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    gc.collect()
    check_nothing_is_left(llm)


class Callers:
    """50 threads, and 500 asyncio tasks in a separate event loop, that share a model for a limited time.

    A third of the requests is cancelled or dropped at random; the other answers must be right. On a busy machine the
    callers continue for up to a minute, until each kind of request has ended once.
    """

    KINDS = frozenset({"dropped", "dropped of n", "dropped in asyncio", "cancelled"}) | {
        f"{kind}: right" for kind in ("generate", "stream", "embed", "await", "async for")
    }

    def __init__(self, llm: LLM, expected: dict[tuple[int, int], Completion], seconds: float) -> None:
        self.llm, self.expected = llm, expected
        self.embeddings = llm.embed(PROMPTS, pooling="mean")
        self.async_llm = AsyncLLM.__new__(AsyncLLM)
        self.async_llm.__dict__ = llm.__dict__  # the same model
        self.end = time.monotonic() + seconds
        self.outcomes: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(50)]
        self.threads.append(threading.Thread(target=lambda: asyncio.run(self._ask_in_tasks())))

    @property
    def running(self) -> bool:
        late = time.monotonic() - self.end
        return late < 0 or (late < 60 and not self.outcomes.keys() >= self.KINDS)

    def _choose(self, source: random.Random) -> tuple[Completion, dict[str, Any]]:
        key = source.randrange(len(PROMPTS)), source.choice([4, 20, 60])
        return self.expected[key], {"prompt": PROMPTS[key[0]], "max_tokens": key[1]}

    def _count(self, kind: str, right: bool) -> None:
        self.outcomes[f"{kind}: {'right' if right else 'wrong'}"] += 1

    def _ask(self, number: int) -> None:
        source = random.Random(number)
        while self.running:
            expected, arguments = self._choose(source)
            action = source.randrange(8)
            if action < 2:
                stream = self.llm.stream(**arguments)
                for _ in range(source.randrange(4)):
                    next(stream, None)
                if action:
                    Cycle(stream)
                del stream
                self.outcomes["dropped"] += 1
            elif action < 4:
                self._count("generate", self.llm.generate(**arguments).ids == expected.ids)
            elif action == 4:
                pieces = self.llm.stream_batch([arguments["prompt"]] * 2, max_tokens=60, temperature=1.5, n=4)
                for _ in range(source.randrange(9)):
                    next(pieces, None)
                del pieces
                self.outcomes["dropped of n"] += 1
            elif action == 5:
                self._count("embed", (self.llm.embed(PROMPTS, pooling="mean") == self.embeddings).all())
            else:
                self._count("stream", "".join(self.llm.stream(**arguments)) == expected.text)

    async def _ask_in_tasks(self) -> None:
        await asyncio.gather(*(self._ask_in_task(number) for number in range(500)))

    async def _ask_in_task(self, number: int) -> None:
        source = random.Random(1000 + number)
        while self.running:
            expected, arguments = self._choose(source)
            action = source.randrange(6)
            if action == 0:
                task = asyncio.create_task(self.async_llm.generate(**arguments))
                await asyncio.sleep(source.random() * 0.05)
                task.cancel()
                await asyncio.wait([task])
                self.outcomes["cancelled" if task.cancelled() else "too late"] += 1
            elif action == 1:
                async for _ in self.async_llm.stream(**arguments):
                    if source.randrange(3):
                        break
                self.outcomes["dropped in asyncio"] += 1
            elif action < 4:
                self._count("await", (await self.async_llm.generate(**arguments)).ids == expected.ids)
            else:
                pieces = [piece async for piece in self.async_llm.stream(**arguments)]
                self._count("async for", "".join(pieces) == expected.text)


@pytest.mark.parametrize("seconds", [4, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_threads_and_tasks_share_a_model_under_interrupts_and_garbage_collections(tiny_model, answers, seconds):
    llm = LLM(tiny_model, "native", threads=1, max_batch=16)
    expected = {key: llm.generate(PROMPTS[key[0]], max_tokens=key[1]) for key in answers}
    assert {key: completion.ids for key, completion in expected.items()} == answers
    callers = Callers(llm, expected, seconds)
    memory: list[int] = []
    gc_thresholds = gc.get_threshold()
    gc.set_threshold(1, 10, 10)
    try:
        for thread in callers.threads:
            thread.start()
        with aimed_interrupts(seed=2, most=0.1) as interrupt:
            interrupted = 0
            while callers.running:
                interrupted += interrupt(lambda: llm.generate(PROMPTS[1], max_tokens=60))
                memory.append(resident_bytes())
        for thread in callers.threads:
            thread.join(60)
            assert not thread.is_alive()
    finally:
        gc.set_threshold(*gc_thresholds)
    gc.collect()
    check_nothing_is_left(llm)
    assert not [kind for kind in callers.outcomes if "wrong" in kind], callers.outcomes
    assert set(callers.outcomes) >= callers.KINDS
    assert interrupted > 0
    if seconds > 60:
        quarter = len(memory) // 4
        assert max(memory[3 * quarter :]) < max(memory[quarter : 2 * quarter]) + 32e6


def resident_bytes() -> int:
    """Returns the resident memory of this process; 0 where /proc does not exist."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


FORK = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns about forks of processes with threads
from puna import LLM, PunaError
llm = LLM(sys.argv[1], "native", threads=1, max_batch=4)
stop = threading.Event()
expected = llm.generate([5, 6], max_tokens=20).ids
wrong = []
def ask():
    while not stop.is_set():
        if llm.generate([5, 6], max_tokens=20).ids != expected: wrong.append(1)
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
def child(stream):
    refused = 0
    for call in (lambda: llm.generate([5], max_tokens=2), lambda: llm.stream([5]), lambda: next(stream),
                 lambda: llm.nll([1, 2]), lambda: llm.generate("text", max_tokens=2)):
        try: call()
        except PunaError as exc: refused += "load the model in this process" in str(exc)
    if refused != 5: return 1
    own = LLM(sys.argv[1], "native", threads=1)
    if own.generate([5, 6], max_tokens=20).ids != expected: return 2
    own.close()
    llm.close()
    return 0
for number in range(20):
    stream = llm.stream([7, 8], max_tokens=200)
    next(stream)
    pid = os.fork()
    if not pid:
        try: status = child(stream)
        except BaseException: status = 9
        if number % 2: os._exit(status)
        sys.exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
for thread in threads: thread.join()
assert not wrong
print("done")
"""


def test_a_forked_process_gets_a_clear_error_and_may_load_the_model_itself(tiny_model):
    run = subprocess.run(
        [sys.executable, "-c", FORK, str(tiny_model)], capture_output=True, text=True, timeout=600, check=False
    )
    assert run.stdout == "done\n", run.stderr


ASYNCIO = """
import asyncio, os, signal, sys, threading
from puna import AsyncLLM
async def main():
    llm = AsyncLLM(sys.argv[1], "native", threads=1)
    async def interrupt():
        await anext((await llm.start([5, 6], max_tokens=200))[1])
        os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.gather(interrupt(), *(llm.generate([5, number], max_tokens=200) for number in range(6, 99)))
    finally:
        await llm.generate([1], max_tokens=1)
        print("idle" if not llm._engine.busy else "busy")
signal.signal(signal.SIGINT, signal.default_int_handler)
try: asyncio.run(main())
except KeyboardInterrupt: print("interrupted")
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.run then raises KeyboardInterrupt at any point")
def test_ctrl_c_during_asyncio_run_cancels_all_requests(tiny_model):
    run = subprocess.run([sys.executable, "-c", ASYNCIO, str(tiny_model)], capture_output=True, text=True, timeout=600)
    assert run.stdout == "idle\ninterrupted\n", run.stderr


FORK_DURING_CHAT = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from puna import LLM
from puna.tokenizer.chat import templates
entered, leave, original = threading.Event(), threading.Event(), templates.end_of_turn_ids
def slow(tokenizer):
    entered.set()
    leave.wait()
    return original(tokenizer)
templates.end_of_turn_ids = slow
llm = LLM(sys.argv[1], "native", threads=1)
thread = threading.Thread(target=lambda: llm.chat("a", max_tokens=2))
thread.start()
entered.wait()
pid = os.fork()
if not pid:
    templates.end_of_turn_ids = original
    os._exit(len(LLM(sys.argv[1], "native", threads=1).chat("a", max_tokens=2).ids) > 2)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
leave.set()
thread.join()
"""


def test_a_process_that_is_forked_while_another_thread_computes_a_property_does_not_wait_for_it(tiny_model):
    command = [sys.executable, "-c", FORK_DURING_CHAT, str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.communicate(timeout=600)[0] == "0\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


EXIT = """
import sys, threading
from puna import LLM
llm = LLM(sys.argv[1], sys.argv[2], threads=1)
stream = llm.stream([5, 6], max_tokens=200)
unread = llm.stream([5, 6], max_tokens=200)
threading.Thread(target=lambda: llm.generate([1], max_tokens=200), daemon=True).start()
print(next(stream) is not None)
"""


@pytest.mark.parametrize("backend", ["native", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_program_may_end_while_requests_run(tiny_model, backend):
    if backend == "torch":
        pytest.importorskip("torch")
    for _ in range(3 if backend == "native" else 1):
        run = subprocess.run(
            [sys.executable, "-c", EXIT, str(tiny_model), backend], capture_output=True, text=True, timeout=600
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "True\n", "")


def test_a_deleted_model_frees_its_memory_and_its_thread(tiny_model):
    for _ in range(5):
        llm = LLM(tiny_model, "native", threads=1)
        llm.generate([5], max_tokens=2)
        is_running, backend = llm._runner._stepper.is_running, weakref.ref(llm._backend)
        assert is_running.locked()
        del llm
        assert is_running.acquire(timeout=20)
        end = time.monotonic() + 20
        while backend() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert backend() is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Dummy")]
