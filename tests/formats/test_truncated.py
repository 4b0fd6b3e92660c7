"""A file that is truncated while it is read raises an error; reading it through a memory map would end the process."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from puna.errors import CheckpointError
from puna.formats.mapped import map_file, read_bytes
from tests.golden.files import LAYOUTS
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder, write_gguf
from tests.helpers.torch_files import HAS_TORCH

BODIES = {
    "LLM": "puna.LLM(checkpoint, backend='native', threads=1)",
    "float32": "[weight.to_float32() for weight in checkpoint.tensors.values()]",
    "rows": "[weight.take(np.arange(weight.shape[0])[::-1]) for weight in checkpoint.tensors.values()]",
    "torch": "puna.LLM(checkpoint, backend='torch')",
}
"""By name: code that reads the tensors of an open checkpoint."""

LAYOUT_NAMES = ("gguf", "safetensors", "bin", "transposed bin", "meta")

READ_TRUNCATED = """
import json, os, sys
import numpy as np
import puna
from puna.checkpoint import open_checkpoint
for layout, name, body, model, file in json.loads(sys.argv[1]):
    checkpoint = open_checkpoint(model)
    os.truncate(file, 20_000)
    try:
        exec(body, globals())
    except puna.PunaError as exc:
        print(layout, name, "truncated" in str(exc) or "damaged" in str(exc), sep=", ", flush=True)
"""
"""Truncates and reads a copy of a model for each layout and body; a body that ends the process prints nothing."""


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The end of one process that reads all truncated files, since importing PyTorch takes seconds."""
    work = []
    for layout in [name for name in LAYOUT_NAMES if HAS_TORCH or not name.endswith("bin")]:
        folder = tmp_path_factory.mktemp("truncated")
        model, file = write_model(folder / "model", layout)
        for name in [name for name in BODIES if HAS_TORCH or name != "torch"]:
            copy = shutil.copytree(folder / "model", folder / name)
            work.append([layout, name, BODIES[name], str(copy / model), str(copy / file)])
    command = [sys.executable, "-c", READ_TRUNCATED, json.dumps(work)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_file_truncated_after_it_was_opened_raises_an_error(reading, layout):
    if layout.endswith("bin") and not HAS_TORCH:
        pytest.skip("torch is not installed")
    expected = [f"{layout}, {name}, True" for name in BODIES if HAS_TORCH or name != "torch"]
    lines = [line for line in reading.stdout.splitlines() if line.startswith(f"{layout}, ")]
    assert lines == expected, reading.stderr[-2000:]


def test_reading_truncated_files_does_not_end_the_process(reading):
    assert reading.returncode == 0, reading.stderr[-2000:]


def write_model(folder: Path, layout: str) -> tuple[str, str]:
    """Writes a tiny model into a new folder; returns the paths of the model and of its weights in this folder."""
    config = tiny_config()
    tensors = tiny_tensors(config)
    if layout == "gguf":
        folder.mkdir()
        write_gguf(folder / "model.gguf", config, tensors)
        return "model.gguf", "model.gguf"
    if layout == "meta":
        shutil.copytree(LAYOUTS["meta"], folder)
        return "", "consolidated.00.pth"
    is_bin = layout.endswith("bin")
    write_folder(folder, config, tensors, bin=is_bin)
    file = "pytorch_model.bin" if is_bin else "model.safetensors"
    if layout == "transposed bin":
        import torch

        state = torch.load(folder / file, weights_only=True)
        torch.save({name: x.T.contiguous().T if x.ndim == 2 else x for name, x in state.items()}, folder / file)
    return "", file


def test_metadata_can_be_read_after_the_open_file_was_truncated(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(LAYOUTS["gguf"].read_bytes())
    code = (
        "import os\nfrom pathlib import Path\nfrom puna.formats.gguf import open_gguf\n"
        f"file = open_gguf(Path({str(path)!r}))\nos.truncate({str(path)!r}, 100)\n"
        "print(len(list(file.metadata['tokenizer.ggml.tokens'])) > 100)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"


def test_a_view_of_a_mapped_file_is_read_into_a_copy(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 100)
    data = map_file(path)
    view = data[1000:3000].reshape(20, 100)[3:7]
    copy = read_bytes(view)
    assert copy.flags.owndata and copy.shape == (4, 100) and np.array_equal(copy, view)
    assert read_bytes(data[5:5]).size == 0
    assert read_bytes(copy) is copy
    for strided in (view.T, view[::-1], view[1:, 5:90:3], view[::2, ::-1].T):
        assert np.array_equal(read_bytes(strided), strided) and not np.shares_memory(read_bytes(strided), data)
    os.truncate(path, 2000)
    assert np.array_equal(read_bytes(data[:2000]), np.frombuffer(path.read_bytes(), np.uint8))
    with pytest.raises(CheckpointError, match="the file ends at byte 2000; it was truncated while it was read"):
        read_bytes(data[1000:3000])
    with pytest.raises(CheckpointError, match="the file ends at byte 2000; it was truncated while it was read"):
        read_bytes(data[1000:3000].reshape(20, 100).T)


def test_a_mapped_file_closes_its_descriptor(tmp_path):
    (tmp_path / "x").write_bytes(b"1234")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        data = map_file(tmp_path / "x")
    del data
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_cannot_be_opened_completely_raises_one_error(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"1234")

    def fail(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("puna.formats.mapped.os.dup", fail)
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Too many open files"):
        map_file(tmp_path / "x")
    gc.collect()
    assert not unraisable
