"""The error for a model that does not fit in memory gives the sizes; caches use the remaining memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from puna.backend import Chunk, consecutive_pages
from puna.errors import BackendError, PunaError, RequestError
from puna.formats.blocks import FORMATS
from puna.native import NativeBackend, memory
from puna.native.library import MAX_THREADS, check_threads, load_library
from puna.native.measure import measure_machine
from puna.native.memory import available_memory
from puna.native.quantize import quantize
from tests.helpers.configurations import config_of
from tests.helpers.native import pack_state, run
from tests.helpers.random_weights import random_state

CONFIG = config_of(max_position_embeddings=512)


def tensors() -> dict:
    return pack_state("f32", random_state(CONFIG))


def test_available_memory_is_plausible():
    assert available_memory() is None or 1e8 < available_memory() < 1e15


def test_a_model_that_does_not_fit_is_an_error(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    with pytest.raises(BackendError, match=r"weights take \d+\.\d MB, but only 0\.1 MB of memory is available"):
        NativeBackend(CONFIG, tensors())


@pytest.mark.parametrize("shape", [(99, 16, 32), (2, 16, 33), (2, 0, 32), (2, 16, 0)])
def test_packed_bytes_are_minus_one_for_an_invalid_format_or_shape(shape):
    assert load_library().puna_packed_bytes(2, 16, 32) > 0
    assert load_library().puna_packed_bytes(*shape) == -1


def test_the_cache_uses_the_memory_that_the_weights_leave(monkeypatch):
    backend = NativeBackend(CONFIG, tensors(), slots=4)
    assert backend.pages == 4 * 8
    page = backend.cache_bytes_per_token * 64
    library = backend._library
    weights = sum(
        library.puna_packed_bytes(tensor.format.ggml_id, *tensor.shape)
        for tensor in tensors().values()
        if len(tensor.shape) == 2
    )
    monkeypatch.setattr(memory, "available_memory", lambda: weights + page * 10)
    small = NativeBackend(CONFIG, tensors(), slots=4)
    assert small.pages == 9
    ids = np.arange(512) % 67
    small.forward([Chunk(consecutive_pages(512), ids, 0)])
    with pytest.raises(RequestError, match=r"pages are \(8, 9\); the cache has pages 0 to 8"):
        small.forward([Chunk((8, 9), ids[:128], 0)])
    small.forward([Chunk((8,), ids[:64], 0)])


GIGABYTE = 10**9


def write_control_group(folder: Path, version: int, limit: str, used: int, cached: int) -> None:
    """Writes the memory files of a Linux control group; half of its page cache is inactive."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "total_" if version == 1 else ""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for name, value in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(f"{value}\n")
    half = cached // 2
    stat = f"cache 7\n{prefix}inactive_file {half}\n{prefix}active_file {half}\n{prefix}inactive_anon 99\n"
    (folder / "memory.stat").write_text(stat)


@pytest.mark.parametrize(
    ("line", "version", "groups", "available"),
    [
        ("0::/", 2, {"": ("8000000000", 7, 6)}, 7),
        ("0::/a/b", 2, {"": ("max", 7, 6), "a": ("8000000000", 7, 0), "a/b": ("max", 1, 0)}, 1),
        ("0::/a/b", 2, {"a": ("8000000000", 1, 0), "a/b": ("5000000000", 1, 0)}, 4),
        ("0::/", 2, {"": ("8000000000", 9, 0)}, 0),
        ("0::/", 2, {}, 32),
        ("4:cpu,memory:/job", 1, {"": ("9223372036854771712", 7, 6), "job": ("8000000000", 7, 5)}, 6),
        ("4:cpu:/job", 1, {"job": ("1000000000", 0, 0)}, 32),
    ],
)
def test_page_cache_counts_as_available(line, version, groups, available, tmp_path, monkeypatch):
    """Each group has a limit in bytes, and its used memory and page cache in gigabytes."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64000000 kB\nMemAvailable: 31250000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:name=systemd:/x\n{line}\n")
    root = tmp_path / "cgroup" / ("memory" if version == 1 else "")
    for name, (limit, used, cached) in groups.items():
        write_control_group(root / name, version, limit, used * GIGABYTE, cached * GIGABYTE)
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
    assert available_memory() == available * GIGABYTE


@pytest.mark.slow
def test_more_threads_than_the_system_allows_are_an_error():
    script = (
        "import resource\n"
        "from puna.errors import BackendError\n"
        "from tests.native.test_memory import CONFIG, tensors\n"
        "from puna.native import NativeBackend\n"
        "from puna.native.measure import measure_machine\n"
        "weights = tensors()\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 10**8, resource.RLIM_INFINITY))\n"
        "for threads in (200, 2000):\n"
        "    try: NativeBackend(CONFIG, weights, threads)\n"
        "    except BackendError as exc: print(exc)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
    )
    lines = run.stdout.splitlines()
    assert run.returncode == 0 and len(lines) == 2, run.stderr
    assert "threads is 2000; it must be from 1 to 256" in lines[1]


def test_zero_threads_are_an_error_everywhere():
    values = np.zeros((1, 128), np.uint8)
    for call in (
        lambda: NativeBackend(CONFIG, tensors(), 0),
        lambda: measure_machine(0),
        lambda: quantize(values, FORMATS["f32"], 32, FORMATS["q8_0"], threads=0),
    ):
        with pytest.raises(PunaError, match="threads is 0; it must be from 1 to 256"):
            call()


def test_python_and_the_library_have_one_limit_of_threads():
    values = np.zeros((1, 128), np.uint8)
    quantize(values, FORMATS["f32"], 32, FORMATS["q8_0"], threads=MAX_THREADS)
    with pytest.raises(PunaError, match=f"must be from 1 to {MAX_THREADS}"):
        quantize(values, FORMATS["f32"], 32, FORMATS["q8_0"], threads=MAX_THREADS + 1)
    check_threads(MAX_THREADS)
    with pytest.raises(BackendError, match=f"from 1 to {MAX_THREADS}"):
        check_threads(MAX_THREADS + 1)


def test_a_forked_child_can_delete_a_model():
    backend = NativeBackend(CONFIG, tensors(), 2)
    backend.forward([Chunk((0,), np.arange(5), 0)])
    child = os.fork()
    if child == 0:
        del backend
        os._exit(7)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 7
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child did not end")


def process_bytes(name: str) -> int:
    """Returns a memory size of this process in bytes, such as VmSize."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


LARGE = config_of(max_position_embeddings=65536, num_hidden_layers=8, num_key_value_heads=4, head_dim=64)
"""A cache of 1.6 GB for eight sequences; each page of 64 tokens takes 1 MB in float32."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cache_grows_with_the_sequences_and_keeps_its_contents():
    weights = pack_state("f32", random_state(LARGE))
    before = process_bytes("VmSize")
    backend = NativeBackend(LARGE, weights, 1, slots=8)
    assert backend.pages > 3_000
    assert process_bytes("VmSize") - before < 3e8
    ids = np.random.default_rng(3).integers(0, LARGE.vocab_size, 700)
    logits = run(backend, ids, [1, 63, 1, 100, 200, 335])  # the cache grows between the chunks
    assert 5e6 < backend.cache_bytes_per_token * 700 < process_bytes("VmSize") - before < 3e8
    fresh = NativeBackend(LARGE, weights, 1)
    np.testing.assert_array_equal(run(fresh, ids, [700]), logits)


LIMITED = """
import resource, sys
import numpy as np
from puna.backend import Chunk, consecutive_pages
from puna.errors import BackendError
from puna.native import NativeBackend, load_library
from tests.native.test_memory import LARGE, process_bytes
from tests.helpers.native import pack_state, run
from tests.helpers.random_weights import random_state

load_library()
weights = pack_state("f32", random_state(LARGE))
free = int(sys.argv[1])
try:
    if sys.argv[2] == "load":
        resource.setrlimit(resource.RLIMIT_AS, (process_bytes("VmSize") + free, resource.RLIM_INFINITY))
    backend = NativeBackend(LARGE, weights, 1, slots=8)
    if sys.argv[2] == "run":
        resource.setrlimit(resource.RLIMIT_AS, (process_bytes("VmSize") + free, resource.RLIM_INFINITY))
    ids = np.arange(int(sys.argv[3])) % 60
    backend.forward([Chunk(consecutive_pages(len(ids)), ids, 0, 1)])
    print("ran", backend.pages)
except BackendError as exc:
    print(exc)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(
    ("free", "when", "tokens", "words"),
    [
        (500_000, "load", 10, r"weights take .* [GM]B, but only \d.*(bytes|MB) of memory is available; .*ulimit -v"),
        (200_000_000, "load", 10, r"ran \d+$"),
        (1_000_000, "run", 1000, "system refused .* MB of memory; .*ulimit -v"),
    ],
)
def test_an_error_for_exhausted_memory_gives_the_amount_and_the_remedy(free, when, tokens, words):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(free), when, str(tokens)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    assert re.search(words, run.stdout.strip()), run.stdout
