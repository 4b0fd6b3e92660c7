"""Paths of a model: its config.json, its folder in the hub's cache, and folders with dangling links."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from puna import LLM, load_tokenizer
from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.config import LlamaConfig
from puna.errors import CheckpointError, ModelNotFoundError, PunaError
from puna.formats.torch_zip import open_torch_zip
from tests.golden.files import LAYOUTS
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_gguf
from tests.helpers.torch_files import save_torch

GOLDEN = LAYOUTS["hf"]
COMMITS = ["0" * 40, "1" * 40]

OPTIONAL = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "quantize_config.json", "quant_config.json", "adapter_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates",
)  # fmt: skip

READ_WITHOUT = {
    "model.safetensors.index.json": "model.safetensors", "tokenizer.model": "tokenizer.json",
    "special_tokens_map.json": "tokenizer_config.json", "added_tokens.json": "tokenizer_config.json",
}  # fmt: skip
"""Files that are read only if another file, the value, is missing."""


def cache_entry(folder: Path, commits: list[str]) -> Path:
    """Writes a model as huggingface_hub caches it; returns the folder of the model in the cache."""
    entry = folder / "models--owner--name"
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots").mkdir()
    for commit in commits:
        shutil.copytree(GOLDEN, entry / "snapshots" / commit)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commits[0] if commits else "")
    return entry


@pytest.mark.parametrize("inside", ["", "snapshots"])
def test_the_only_snapshot_in_the_cache_is_used(tmp_path: Path, inside: str) -> None:
    entry = cache_entry(tmp_path, COMMITS[:1])
    assert open_checkpoint(entry / inside).path == entry / "snapshots" / COMMITS[0]
    assert load_tokenizer(entry / inside).encode("the llama") == load_tokenizer(GOLDEN).encode("the llama")
    assert LlamaConfig.from_pretrained(entry / inside).vocab_size == 512
    assert not inspect_checkpoint(entry / inside).errors


def test_several_snapshots_in_the_cache_are_listed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"2 snapshots: .*{COMMITS[0]}, .*{COMMITS[1]}\. .*'main' is 0000"):
        open_checkpoint(cache_entry(tmp_path / "two", COMMITS))
    with pytest.raises(ModelNotFoundError, match=r"0 snapshots.*Download the model again"):
        LLM(cache_entry(tmp_path / "none", []))


def test_the_path_of_a_config_json_opens_its_folder() -> None:
    assert open_checkpoint(GOLDEN / "config.json").path == GOLDEN
    assert load_tokenizer(GOLDEN / "config.json").encode("the llama") == load_tokenizer(GOLDEN).encode("the llama")
    assert LLM(GOLDEN / "config.json", "native", threads=1).config == LlamaConfig.from_pretrained(GOLDEN)


def test_the_error_for_a_folder_of_models_names_one_of_them(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "checkpoint-500")
    with pytest.raises(ModelNotFoundError, match=r"give the folder of a model, such as .*checkpoint-500$"):
        open_checkpoint(tmp_path)


def test_the_configuration_of_an_adapter_next_to_a_gguf_file_is_ignored(tmp_path: Path) -> None:
    shutil.copy(LAYOUTS["gguf"], tmp_path / "model.gguf")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert open_checkpoint(tmp_path).kind == "gguf"


def test_wrappers_of_meta_s_models_are_noted(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LAYOUTS["meta"], tmp_path / "model"))
    file = folder / "consolidated.00.pth"
    tensors = {
        name: tensor.to_float32() for name, tensor in open_torch_zip(LAYOUTS["meta"] / file.name).tensors.items()
    }
    save_torch({f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}, file)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors.keys() == open_checkpoint(LAYOUTS["meta"]).tensors.keys()
    assert any("_orig_mod., module. of a wrapper" in note for note in checkpoint.notes)


def test_nulls_in_meta_s_parameters_change_nothing(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LAYOUTS["meta"], tmp_path / "model"))
    params = json.loads((folder / "params.json").read_text())
    nulls = dict.fromkeys(("moe_args", "lora_args", "use_scaled_rope", "ffn_dim_multiplier", "max_seq_len"))
    (folder / "params.json").write_text(json.dumps(nulls | params))
    assert open_checkpoint(folder).config == open_checkpoint(LAYOUTS["meta"]).config


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_dangling_link_is_an_error_even_for_an_optional_file(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    if name in READ_WITHOUT:
        (folder / READ_WITHOUT[name]).unlink()
    (folder / name).symlink_to("../../blobs/gone")
    with pytest.raises(PunaError, match=f"{name} is a link to '../../blobs/gone', which does not exist"):
        open_checkpoint(folder)
        load_tokenizer(folder)
    report = inspect_checkpoint(folder)
    assert any("is a link to" in line for line in [*report.errors, *report.warnings])


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model", "consolidated.00.pth"])
def test_a_dangling_link_in_a_folder_of_meta_is_refused(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(LAYOUTS["meta"], tmp_path / "model"))
    (folder / name).unlink()
    (folder / name).symlink_to("gone")
    with pytest.raises(PunaError, match=f"{name}"):
        open_checkpoint(folder)
    assert inspect_checkpoint(folder).errors


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_configuration_that_is_not_a_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "model"))
    path = folder / "generation_config.json"
    path.unlink()
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(PunaError, match="give a regular file"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["training_args.bin", "m.imatrix.bin", "optimizer.bin"])
def test_a_bin_file_without_weights_does_not_hide_a_gguf_model(tmp_path: Path, name: str) -> None:
    config = tiny_config()
    write_gguf(tmp_path / "m.gguf", config, tiny_tensors(config))
    config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    assert open_checkpoint(tmp_path).kind == "gguf"


def test_a_damaged_set_of_shards_next_to_a_gguf_model_is_not_hidden(tmp_path: Path) -> None:
    config = tiny_config()
    write_gguf(tmp_path / "m.gguf", config, tiny_tensors(config))
    config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="1 of 2 shards are missing"):
        open_checkpoint(tmp_path)
