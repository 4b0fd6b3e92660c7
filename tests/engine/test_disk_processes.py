"""Prefixes on the disk with several processes: killed at any moment, or writing and evicting at the same time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from puna.engine import Engine, Request
from puna.engine.disk import DiskCache
from tests.engine.recorder import Recorder, drain, expected_answer, tokens_of
from tests.engine.test_disk_cache import SlowClock
from tests.engine.test_pages import prompt_of

FINGERPRINT = bytes(32)


def run_requests(folder: Path, seed: int, limit: int, count: int) -> int:
    """Runs requests with shared prefixes and checks their answers; returns the number of pages from the disk."""
    backend = Recorder(30, context=1024)
    disk = DiskCache(folder, limit, FINGERPRINT, backend)
    engine = Engine(backend, 2, disk=disk, clock=SlowClock())
    random = np.random.default_rng(seed)
    for _ in range(count):
        prompt = (*prompt_of(400, int(random.integers(6)))[: random.integers(64, 400)], int(random.integers(31)))
        request_id = engine.submit(Request(prompt, 3))
        assert tokens_of(drain(engine), request_id) == expected_answer(prompt, 3)
    engine.close()
    return disk.hits


def start_process(folder: Path, seed: int, limit: int, count: int) -> int:
    """Runs requests in a forked process, which exits with status 0 if all answers are correct; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run_requests(folder, seed, limit, count)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("rounds", [40, pytest.param(300, marks=pytest.mark.soak)])
def test_a_process_that_is_killed_at_any_moment_leaves_a_usable_cache(tmp_path, rounds):
    random, killed = np.random.default_rng(0), 0
    for seed in range(rounds):
        child = start_process(tmp_path, seed, 1 << 16, 1000)
        time.sleep(float(random.random()) * 0.1)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), status
        killed += 1
    assert killed == rounds
    sizes = {path.stat().st_size for path in tmp_path.glob("[!.]*")}
    assert len(sizes) == 1  # no incomplete file has a final name
    assert run_requests(tmp_path, 0, 1 << 16, 30) > 0
    for path in tmp_path.glob(".*"):  # the files of killed processes
        os.utime(path, (0, 0))
    run_requests(tmp_path, 1, 1 << 13, 30)
    assert not list(tmp_path.glob(".*"))


def test_processes_that_write_and_evict_at_the_same_time_give_correct_answers(tmp_path):
    children = [start_process(tmp_path, seed, 20_000, 150) for seed in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    assert not list(tmp_path.glob(".*"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000 * (1 + 3 / 16)
    assert run_requests(tmp_path, 9, 20_000, 30) > 0
