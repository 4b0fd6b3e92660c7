"""Prefixes on the disk: engines that are started again, or run at the same time, read the pages of earlier ones."""

from __future__ import annotations

import os
import threading
import time
import warnings

import numpy as np
import pytest

from puna.engine import Engine, Request
from puna.engine.disk import DiskCache
from puna.engine.disk import cache as disk_cache_module
from puna.errors import BackendError, StorageError
from tests.engine.recorder import Recorder, drain, expected_answer, tokens_of
from tests.engine.test_pages import cached_tokens, computed_tokens, prompt_of

PAGE_BYTES = Recorder.page_bytes


class SlowClock:
    """A clock by which each step takes many seconds: the fake backend computes faster than any disk can be read."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1000
        return self.seconds


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts an engine with a disk cache; the engines are closed at the end."""
    engines = []

    def start(fingerprint: bytes = bytes(32), limit: int = 1 << 24, **options) -> Engine:
        backend = Recorder(options.pop("pages", 100), context=1024)
        disk = DiskCache(tmp_path / "cache", limit, fingerprint, backend)
        engines.append(Engine(backend, disk=disk, clock=SlowClock(), **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def answer(engine: Engine, prompt: tuple[int, ...], count: int = 3, salt: str = "") -> int:
    """Runs a request alone, checks its answer and returns the number of cached tokens."""
    request_id = engine.submit(Request(prompt, count, salt=salt))
    events = drain(engine)
    assert tokens_of(events, request_id) == expected_answer(prompt, count)
    read = sum(event.prompt_tokens for event in events)
    assert read + cached_tokens(events, request_id) == len(prompt)
    return cached_tokens(events, request_id)


def test_a_later_engine_reads_the_pages_of_an_earlier_one(start):
    prompt = prompt_of(200)
    first = start()
    assert answer(first, prompt, 100) == 0
    first.close()
    assert (first.pool.disk.hits, first.pool.disk.saved) == (0, 4)
    second = start()
    assert answer(second, (*prompt, 5, 6)) == 192
    assert computed_tokens(second) == 10 + 2
    assert second.pool.disk.hits == 3
    assert answer(second, (*prompt, 7)) == 200
    assert second.pool.disk.hits == 3  # the pages are in memory
    turn = (*prompt, *expected_answer(prompt, 100), 9)
    assert answer(second, turn) == 256
    assert second.pool.disk.hits == 4


@pytest.mark.parametrize(("fingerprint", "salt", "tokens"), [
    (bytes(32), "x", 192), (bytes(32), "", 0), (b"\1" * 32, "x", 0), (bytes(32), "y", 0),
])  # fmt: skip
def test_pages_are_used_only_with_an_equal_fingerprint_and_salt(start, fingerprint, salt, tokens):
    first = start()
    answer(first, prompt_of(200), salt="x")
    first.close()
    assert answer(start(fingerprint), prompt_of(200), salt=salt) == tokens


def test_a_prefix_is_used_up_to_the_first_difference(start):
    first, prompt = start(), prompt_of(300)
    answer(first, prompt)
    first.close()
    for position, tokens in [(0, 0), (63, 0), (64, 64), (200, 192), (255, 192), (256, 256)]:
        changed = (*prompt[:position], (prompt[position] + 1) % 31, *prompt[position + 1 :])
        assert answer(start(), changed) == tokens
    assert answer(start(), prompt[:256]) == 192
    assert answer(start(), prompt[:257]) == 256


def test_a_long_prompt_is_read_in_several_steps(start):
    first, prompt = start(chunk=128), prompt_of(1000)
    answer(first, prompt)
    first.close()
    second = start(chunk=128, slots=2)
    decoding = second.submit(Request((1, 2, 3), 20))
    second.step()
    reading = second.submit(Request(prompt, 1))
    steps = []
    while second.pool.disk.hits < 15:
        before = second.pool.disk.hits
        events = second.step()
        assert [event.request_id for event in events] == [decoding]
        steps.append(second.pool.disk.hits - before)
    assert steps == [2, 2, 2, 2, 2, 2, 2, 1]
    events = drain(second)
    assert cached_tokens(events, reading) == 960


def test_equal_prompts_that_arrive_together_are_read_from_the_disk_once(start):
    first, prompt = start(), prompt_of(300)
    answer(first, prompt)
    first.close()
    second = start(slots=3)
    ids = [second.submit(Request(prompt, 4)) for _ in range(3)]
    events = drain(second)
    assert all(cached_tokens(events, request_id) >= 256 for request_id in ids)
    assert (second.pool.disk.hits, second.pool.hits) == (4, 8)
    assert computed_tokens(second) == 44 + 2 + 3 * 3  # the last page is computed once, and copied


def test_running_engines_share_the_folder(start):
    first, second = start(), start()
    answer(first, prompt_of(200, 1))
    answer(second, prompt_of(200, 2))
    first.pool.disk.close()
    second.pool.disk.close()
    assert answer(first, prompt_of(200, 2)) == answer(second, prompt_of(200, 1)) == 192


def test_a_cache_without_sharing_uses_no_disk(tmp_path):
    backend = Recorder(context=1024)
    engine = Engine(backend, prefix_cache=False, disk=DiskCache(tmp_path, 1 << 20, bytes(32), backend))
    answer(engine, prompt_of(200))
    engine.close()
    assert not list(tmp_path.iterdir())


def test_pages_from_the_disk_fit_in_a_small_cache(start):
    """Reading takes pages from younger requests only, as computing does."""
    first = start()
    prompts = [prompt_of(200 + 40 * seed, seed) for seed in range(4)]
    for prompt in prompts:
        answer(first, prompt)
    first.close()
    second = start(pages=7, slots=4, chunk=64)
    ids = [second.submit(Request(prompt, 100)) for prompt in prompts]
    events = drain(second)
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert tokens_of(events, request_id) == expected_answer(prompt, 100)
    assert second.scheduler.preemptions > 0
    assert second.pool.disk.hits > 10
    assert second.pool.available == 7


def test_a_page_that_another_request_computes_meanwhile_is_registered_once(start):
    """Two requests compute a page at the same time, in small steps; the first one writes it to the disk."""
    engine, prompt = start(pages=8, slots=2, chunk=12), prompt_of(100)
    answer(engine, (*prompt[:20], *prompt_of(20, 1)))  # both requests continue in a copy of this page
    for path in page_files(engine):
        path.unlink()
    ids = [engine.submit(Request(prompt, 4)) for _ in range(2)]
    events = []
    while engine.busy:
        events += engine.step()
        wait_for_writer(engine)
    assert all(tokens_of(events, request_id) == expected_answer(prompt, 4) for request_id in ids)
    for text in range(2, 6):  # evicts the page
        answer(engine, prompt_of(400, text))


def test_pages_that_the_backend_cannot_write_are_computed(start, monkeypatch):
    first, prompt = start(), prompt_of(200)
    answer(first, prompt)
    first.close()
    second = start()
    with monkeypatch.context() as patch:
        patch.setattr(second.backend, "write_pages", refuse_memory)
        answer(second, prompt)
    assert computed_tokens(second) == 200 + 2
    assert answer(second, prompt) > 0


def refuse_memory(pages, data):
    raise BackendError("no memory")


def wait_for_writer(engine: Engine) -> None:
    writer = engine.pool.disk._writer
    while writer._taken < writer._put:
        time.sleep(0.0005)


def page_files(start_engine: Engine) -> list:
    return sorted(start_engine.pool.disk._files.folder.glob("*.page"))


def test_damaged_files_are_computed_and_written_again(start):
    first, prompt = start(), prompt_of(300)
    answer(first, prompt)
    first.close()
    for path in page_files(first):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        engine = start()
        assert answer(engine, prompt) < 256
        engine.close()
        assert answer(start(), prompt) == 256


def test_the_first_pages_of_a_prefix_are_removed_last(start):
    file_size = 32 * 2 + 16 + 16 + 512 + 32 + PAGE_BYTES
    first = start(limit=8 * file_size)
    old, new = prompt_of(193, 1), prompt_of(385, 2)
    answer(first, old)
    answer(first, prompt_of(129, 3))
    answer(first, old)  # uses the pages again, from memory
    answer(first, new)
    first.close()
    assert len(page_files(first)) == 8
    assert answer(start(), new) == 384
    assert answer(start(), old) == 128
    assert answer(start(), prompt_of(129, 3)) == 0


def test_pages_above_the_queue_limit_are_saved_when_they_are_used_again(start, monkeypatch):
    monkeypatch.setattr(disk_cache_module, "_QUEUE_BYTES", 2 * PAGE_BYTES)
    gate, first = threading.Event(), start()
    write = first.pool.disk._files.write
    monkeypatch.setattr(first.pool.disk._files, "write", lambda *args: (gate.wait(20), write(*args)))
    prompt = prompt_of(300)
    answer(first, prompt)
    assert first.pool.disk.saved == 2
    assert len(first.pool._unsaved) == 2
    gate.set()
    while first.pool.disk._writer._put != first.pool.disk._writer._taken:
        time.sleep(0.001)
    answer(first, prompt)
    first.close()
    assert first.pool.disk.saved == 4
    assert not first.pool._unsaved
    assert answer(start(), prompt) == 256


def test_pages_are_computed_while_reading_is_slower(start, monkeypatch):
    first, prompt = start(), prompt_of(900)
    answer(first, prompt)
    first.close()
    second, third = start(chunk=64), start(chunk=64)
    for engine, seconds in ((second, 1.0), (third, 100.0)):
        engine.scheduler.times.record(0, 640, seconds)  # a page is computed in a tenth of this time
        monkeypatch.setattr(engine.scheduler.times, "record", lambda *args: None)
    read = second.pool.disk._files.read
    monkeypatch.setattr(second.pool.disk._files, "read", lambda *args: (time.sleep(0.2), read(*args))[1])
    assert 0 < answer(second, prompt) < 640
    assert 0 < second.pool.disk.hits < 10
    third.pool.disk._reading = 30.0  # as measured before; reading is tried again, and is fast now
    assert answer(third, prompt) > 256


def test_a_failure_of_the_disk_is_a_warning_and_answers_continue(start, monkeypatch):
    engine = start()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="new prefixes are not saved there: .*No space left on device") as caught:
        answer(engine, prompt_of(500))
        engine.pool.disk.close()
    assert len(caught) == 1
    monkeypatch.undo()
    answer(engine, prompt_of(500, 1))
    assert not page_files(engine)
    assert not list(engine.pool.disk._files.folder.glob("*.tmp"))


def test_a_failure_is_no_error_if_warnings_are_errors(start, monkeypatch):
    engine = start()
    monkeypatch.setattr(engine.pool.disk._files, "write", lambda *args: (_ for _ in ()).throw(StorageError("full")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(engine, prompt_of(500))
        engine.pool.disk.close()
    assert engine.pool.disk._writer._ended


def test_a_folder_that_cannot_be_written_is_read(start, monkeypatch):
    first, prompt = start(), prompt_of(200)
    answer(first, prompt)
    first.close()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.warns(UserWarning, match="only read; .* no permission to write to the folder"):
        second = start()
    assert answer(second, (*prompt, *prompt_of(200, 2))) == 192
    second.close()
    assert len(page_files(second)) == 3


def test_a_limit_below_two_pages_is_refused(start):
    with pytest.raises(
        StorageError,
        match=r"prefix_cache_bytes is 1023 bytes, but .* two pages of 64 tokens, .* set it to 1024",
    ):
        start(limit=2 * PAGE_BYTES - 1)


def test_closing_waits_a_limited_time(start, monkeypatch):
    engine, gate = start(), threading.Event()
    monkeypatch.setattr(disk_cache_module, "_CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(engine.pool.disk._files, "write", lambda *args: gate.wait(60))
    answer(engine, prompt_of(200))
    started = time.perf_counter()
    engine.close()
    assert time.perf_counter() - started < 30
    gate.set()


def test_the_writing_thread_ends_when_the_cache_is_deleted(tmp_path):
    backend = Recorder(context=1024)
    engine = Engine(backend, disk=DiskCache(tmp_path, 1 << 20, bytes(32), backend))
    answer(engine, prompt_of(200))
    writer = engine.pool.disk._writer
    del engine
    deadline = time.monotonic() + 20
    while not writer._ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert writer._ended
    assert len(list(tmp_path.iterdir())) == 3


def test_a_forked_process_neither_writes_nor_waits(start, monkeypatch):
    monkeypatch.setattr(disk_cache_module, "_CLOSE_SECONDS", 60.0)
    engine = start()
    answer(engine, prompt_of(200))
    child = os.fork()
    if not child:
        started = time.monotonic()
        engine.close()
        os._exit(int(time.monotonic() - started > 30))
    assert os.waitpid(child, 0)[1] == 0
    engine.close()
    assert len(page_files(engine)) == 3


def test_random_schedules_with_restarts_and_damaged_files(start):
    """A cache whose files are damaged, removed or exchanged at random never changes an answer."""
    hits = 0
    for seed in range(30):
        random = np.random.default_rng(seed)
        engine = start(pages=int(random.integers(8, 30)), slots=3, chunk=int(random.choice([3, 64, 100, 512])))
        texts = [prompt_of(400, text) for text in range(3)]
        expected = {}
        for _ in range(6):
            prompt = (*texts[random.integers(3)][: random.integers(1, 400)], int(random.integers(31)))
            expected[engine.submit(Request(prompt, 20))] = expected_answer(prompt, 20)
        events = drain(engine)
        assert {request_id: tokens_of(events, request_id) for request_id in expected} == expected
        hits += engine.pool.disk.hits
        engine.close()
        damage_files(page_files(engine), random)
    assert hits > 100


def damage_files(paths: list, random: np.random.Generator) -> None:
    """Damages some of the files."""
    contents = [path.read_bytes() for path in paths]
    for path, original in zip(paths, contents, strict=True):
        kind = random.integers(12)
        content = bytearray(original)
        if kind == 0 and content:  # a file may be empty from an earlier round
            content[random.integers(len(content))] ^= 1 << random.integers(8)
        elif kind == 1:
            content = content[: random.integers(len(content) + 1)]
        elif kind == 2:
            content = bytearray(contents[random.integers(len(paths))])
        elif kind == 3:
            path.unlink()
            continue
        path.write_bytes(content)
