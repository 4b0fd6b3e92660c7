"""Saved weights, read by transformers and puna, and saves that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from puna.checkpoint import open_checkpoint
from puna.errors import CheckpointError
from puna.saving import parse_size, save_checkpoint
from tests.checkpoint.tiny import Tensors, tiny_config, tiny_tensors


def entries(tensors: Tensors) -> Iterator[tuple[str, str, tuple[int, ...], Any]]:
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        yield name, kind, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("size", ["5GB", "100KB", 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_and_puna_read_saved_models(tmp_path: Path, size: int | str, dtype: torch.dtype) -> None:
    config = tiny_config(dtype=dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in tiny_tensors(config).items()}
    files = save_checkpoint(tmp_path, config, entries(tensors), None, size)
    assert files[-1].name == "config.json"
    assert files[-2].name == ("model.safetensors" if size == "5GB" else "model.safetensors.index.json")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    checkpoint = open_checkpoint(tmp_path)
    model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == dtype
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].to_float32(), tensor.float().numpy())
        assert torch.equal(model.state_dict()[name], tensor)


def test_shards_respect_the_limit_and_the_index_adds_up(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    *files, index_file, _ = save_checkpoint(tmp_path, tiny_config(), entries(tensors), None, "60KB")
    index = json.loads(index_file.read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for file in files:
        assert (
            sum(4 * tensors[name].numel() for name, shard in index["weight_map"].items() if shard == file.name)
            <= 60_000
        )
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"


def test_a_new_save_replaces_the_old_one_whatever_its_shards(tmp_path: Path) -> None:
    config = tiny_config()
    for seed, size in enumerate([10**9, 60_000, 30_000, 60_000, 10**9]):
        tensors = tiny_tensors(config, seed=seed)
        files = save_checkpoint(tmp_path, config, entries(tensors), None, size)
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
        for name, weight in open_checkpoint(tmp_path).tensors.items():
            np.testing.assert_array_equal(weight.to_float32(), tensors[name].numpy())


def test_a_save_that_fails_leaves_the_old_weights(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    save_checkpoint(tmp_path, config, entries(tensors), None, 60_000)

    def fail() -> bytes:
        raise RuntimeError("no more")

    broken = [(name, "f32", shape, data) for name, _, shape, data in entries(tiny_tensors(config, seed=5))]
    with pytest.raises(RuntimeError, match="no more"):
        save_checkpoint(tmp_path, config, [*broken, ("last", "f32", (1,), fail)], None, 60_000)
    for name, weight in open_checkpoint(tmp_path).tensors.items():
        np.testing.assert_array_equal(weight.to_float32(), tensors[name].numpy())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([("a", "int64", (1,), bytes(8))], "'int64'"),
        ([("a", "q8_0", (32,), bytes(34))], "'q8_0'"),
        ([("a", "f32", (1,), bytes(4))] * 2, "2 tensors have only 1 different names"),
        ([("a", "f32", (2,), bytes(4))], "4 bytes"),
    ],
)
def test_invalid_tensors_are_refused(tmp_path: Path, new: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "made" / "here", tiny_config(), new)
    assert not list(tmp_path.iterdir())


def test_sizes() -> None:
    found = [parse_size(size) for size in (5, "5", "5GB", "200MB", "1 kb", "2GiB", "3MiB")]
    assert found == [5, 5, 5 * 10**9, 2 * 10**8, 1000, 2 * 2**30, 3 * 2**20]
    for wrong in ("", "0", "-1", "5TB", "GB", "1.5GB", "B", 0):
        with pytest.raises(CheckpointError, match="give bytes"):
            parse_size(wrong)
