"""`release` returns the memory of a mapped file to the system, for arrays from different file formats."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from puna.formats.mapped import map_file, release
from puna.formats.safetensors import open_safetensors
from puna.formats.torch_zip import open_torch_zip
from tests.helpers.torch_files import save_torch

SIZE = 32 * 2**20


def mapped_memory() -> int:
    """Returns the bytes of mapped files that are in this process's memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux shows how much of mapped files is in memory")
    match = re.search(r"RssFile:\s+(\d+) kB", status.read_text())
    assert match is not None
    return int(match[1]) * 1024


def map_plain(folder: Path) -> np.ndarray:
    (folder / "file").write_bytes(bytes(SIZE))
    return map_file(folder / "file")


def map_safetensors(folder: Path) -> np.ndarray:
    safetensors.numpy.save_file({"a": np.zeros(SIZE // 4, np.float32)}, folder / "file")
    return open_safetensors(folder / "file").tensors["a"].raw


def map_torch(folder: Path) -> np.ndarray:
    save_torch({"a": np.zeros((1024, SIZE // 4096), np.float32)}, folder / "file")
    return open_torch_zip(folder / "file").tensors["a"].raw


@pytest.mark.parametrize("view", [map_plain, map_safetensors, map_torch])
def test_released_pages_leave_memory_and_can_be_read_again(view: Callable[[Path], np.ndarray], tmp_path: Path) -> None:
    bytes_ = view(tmp_path)
    before = mapped_memory()
    assert int(bytes_.sum()) == 0
    assert mapped_memory() - before > SIZE // 2
    release(bytes_)
    assert mapped_memory() - before < SIZE // 8
    assert int(bytes_.sum()) == 0
    release(np.zeros(3))  # not mapped: no effect


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_file_larger_than_the_address_space_is_an_error(tmp_path):
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(3_000_000_000)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from puna.formats.mapped import map_file\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, resource.RLIM_INFINITY))\n"
        "try: map_file(Path(sys.argv[1]))\n"
        "except ValueError as exc: print(exc)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "the system refused to map 3.00 GB into memory; raise the limit" in run.stdout, run.stderr
