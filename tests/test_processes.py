"""Pools of separate processes: reuse, crashes, time and memory. Chat templates and grammars use them."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from puna.processes.pool import WorkerError, WorkerPool

PROGRAM = """
import os, time
from puna.processes.serving import serve_requests

kept = []

def answer(request):
    name, _, number = request.partition(b" ")
    if name == b"kill":
        os.kill(os.getpid(), int(number))
    if name == b"loop":
        while True:
            pass
    if name == b"sleep":
        time.sleep(100)
    if name == b"pause":
        time.sleep(0.01)
    if name == b"keep":
        kept.append(bytearray(int(number)))
    if name == b"first" and kept:
        os._exit(3)  # as if memory was used up
    kept.append(None)
    return str(os.getpid()).encode()

def serve():
    serve_requests(answer, seconds=0.2, wall_seconds=1.0, memory=100_000_000)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    (tmp_path / "program_of_the_test.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = WorkerPool("program_of_the_test")
    yield pool
    pool.close()


def test_one_process_answers_many_requests(pool):
    first = pool.ask(b"pid")
    assert int(first) != os.getpid()
    assert [pool.ask(b"pid") for _ in range(3)] == [first] * 3


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
@pytest.mark.parametrize("has_answered", [False, True])
def test_a_request_that_ends_the_process_is_reported_and_the_next_has_another_process(pool, number, has_answered):
    first = pool.ask(b"pid") if has_answered else b""
    with pytest.raises(WorkerError) as error:
        pool.ask(b"kill %d" % number)
    assert error.value.status == -number
    assert pool.ask(b"pid") != first


@pytest.mark.parametrize(("request_", "number"), [(b"loop", signal.SIGPROF), (b"sleep", signal.SIGALRM)])
def test_the_time_of_each_request_is_limited(pool, request_, number):
    pool.ask(b"pid")
    with pytest.raises(WorkerError) as error:
        pool.ask(request_)
    assert error.value.status == -number


def test_a_request_that_only_a_new_process_can_answer_is_repeated(pool):
    first = pool.ask(b"pid")
    assert pool.ask(b"first") not in (first, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_process_that_keeps_more_than_half_of_its_memory_ends(pool):
    first = pool.ask(b"keep 40000000")
    assert pool.ask(b"keep 20000000") == first
    second = pool.ask(b"keep 50000000")
    assert second != first
    with pytest.raises(WorkerError) as error:
        pool.ask(b"keep 110000000")
    assert error.value.status == 1


def test_a_pool_has_at_most_four_processes(pool):
    with ThreadPoolExecutor(16) as threads:
        processes = set(threads.map(lambda _: pool.ask(b"pause"), range(48)))
    assert 1 <= len(processes) <= 4


def test_a_request_that_always_ends_its_process_ends_at_most_two(pool):
    with ThreadPoolExecutor(4) as threads:
        processes = set(threads.map(lambda _: pool.ask(b"pause"), range(48)))
    with pytest.raises(WorkerError):
        pool.ask(b"kill 9")
    with ThreadPoolExecutor(4) as threads:
        left = set(threads.map(lambda _: pool.ask(b"pause"), range(48)))
    assert len(left & processes) >= len(processes) - 1


def test_a_program_that_cannot_be_imported_is_reported(tmp_path):
    with pytest.raises(WorkerError) as error:
        WorkerPool("no_such_program_of_puna").ask(b"pid")
    assert error.value.status == 1
