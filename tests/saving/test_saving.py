"""Transformers and puna read saved weights; a failed save leaves the old weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.checkpoint import open_checkpoint
from puna.errors import CheckpointError
from puna.saving import parse_size, save_checkpoint
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors
from tests.helpers.torch_files import DTYPES, Tensors, to_torch


def entries(tensors: Tensors) -> Iterator[tuple[str, str, tuple[int, ...], Any]]:
    """Yields the tensors in the form that `save_checkpoint` expects."""
    for name, tensor in tensors.items():
        yield name, tensor.dtype.name, tensor.shape, np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("size", ["5GB", "100KB", 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_and_puna_read_saved_models(tmp_path: Path, size: int | str, dtype: str) -> None:
    config = tiny_config(dtype=dtype)
    tensors = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tiny_tensors(config).items()}
    files = save_checkpoint(tmp_path, config, entries(tensors), None, size)
    assert files[-1].name == "config.json"
    assert files[-2].name == ("model.safetensors" if size == "5GB" else "model.safetensors.index.json")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    checkpoint = open_checkpoint(tmp_path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].to_float32(), tensor.astype(np.float32))
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == getattr(torch, dtype)
    for name, tensor in tensors.items():
        assert torch.equal(model.state_dict()[name], to_torch(tensor))


def test_shards_respect_the_limit_and_the_index_lists_all_tensors(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    *files, index_file, _ = save_checkpoint(tmp_path, tiny_config(), entries(tensors), None, "60KB")
    index = json.loads(index_file.read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.size for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for file in files:
        assert (
            sum(4 * tensors[name].size for name, shard in index["weight_map"].items() if shard == file.name) <= 60_000
        )
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"


def test_a_new_save_replaces_an_old_one_with_any_number_of_shards(tmp_path: Path) -> None:
    config = tiny_config()
    for seed, size in enumerate([10**9, 60_000, 30_000, 60_000, 10**9]):
        tensors = tiny_tensors(config, seed=seed)
        files = save_checkpoint(tmp_path, config, entries(tensors), None, size)
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
        for name, weight in open_checkpoint(tmp_path).tensors.items():
            np.testing.assert_array_equal(weight.to_float32(), tensors[name])


def test_a_save_that_fails_leaves_the_old_weights(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    save_checkpoint(tmp_path, config, entries(tensors), None, 60_000)

    def fail() -> bytes:
        raise RuntimeError("no more")

    incomplete = [(name, "f32", shape, data) for name, _, shape, data in entries(tiny_tensors(config, seed=5))]
    with pytest.raises(RuntimeError, match="no more"):
        save_checkpoint(tmp_path, config, [*incomplete, ("last", "f32", (1,), fail)], None, 60_000)
    for name, weight in open_checkpoint(tmp_path).tensors.items():
        np.testing.assert_array_equal(weight.to_float32(), tensors[name])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", "int64", (1,), bytes(8))], "'int64'"),
        ([("a", "q8_0", (32,), bytes(34))], "'q8_0'"),
        ([("a", "f32", (1,), bytes(4))] * 2, "2 tensors have only 1 different names"),
        ([("a", "f32", (2,), bytes(4))], "4 bytes"),
    ],
)
def test_invalid_tensors_are_refused(tmp_path: Path, tensors: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "new" / "folder", tiny_config(), tensors)
    assert not list(tmp_path.iterdir())


def test_shard_sizes_are_parsed() -> None:
    sizes = [parse_size(size) for size in (5, "5", "5GB", "200MB", "1 kb", "2GiB", "3MiB")]
    assert sizes == [5, 5, 5 * 10**9, 2 * 10**8, 1000, 2 * 2**30, 3 * 2**20]
    for invalid in ("", "0", "-1", "5TB", "GB", "1.5GB", "B", 0):
        with pytest.raises(CheckpointError, match="give bytes"):
            parse_size(invalid)
