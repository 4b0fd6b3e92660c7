"""A Hugging Face folder: safetensors shards and their index, the configurations, the tokenizer's files."""

from __future__ import annotations

from pathlib import Path

from puna.checkpoint.names import expected_tensors
from puna.checkpoint.saving import INDEX, split_into_shards, weight_index, write_shard
from puna.config import LlamaConfig
from puna.convert.gguf_metadata import description_notes
from puna.convert.model import Model, main_type, plain
from puna.convert.target import NewFile, Target, new_tensor
from puna.convert.tokenizer_files import write_hf_tokenizer
from puna.errors import CheckpointError
from puna.files import json_bytes, write_json
from puna.formats.blocks import BlockFormat

_CLASSES = {"lm": "LlamaForCausalLM", "classification": "LlamaForSequenceClassification", "none": "LlamaModel"}


def hf_target(
    model: Model,
    dtype: BlockFormat | None,
    shard_size: int | str | None = None,
    shards: int | None = None,
    instruct: bool = False,
) -> Target:
    """The files of a folder.

    Args:
        dtype: the type to cast to; None keeps the source's.
        shard_size: most bytes of a file; None means 5 GB.
        shards: their number, instead.

    Raises:
        CheckpointError: more shards than tensors.
    """
    main = main_type(model, dtype)
    tensors = {
        name: plain(model.tensors[name], main, dtype is not None)
        for name, _ in expected_tensors(model.config, model.head)
        if name in model.tensors
    }
    new = [new_tensor(name, rows) for name, rows in tensors.items()]
    if shards is not None and not 0 < shards <= len(new):
        raise CheckpointError(f"{shards} shards of {len(new)} tensors; give a number from 1 to {len(new)}")
    placed = split_into_shards(new, "5GB" if shard_size is None else shard_size, shards)
    config = LlamaConfig.from_dict(model.config.to_dict(), dtype=main.torch, architectures=[_CLASSES[model.head]])

    for name, found in (("config.json", config), ("generation_config.json", model.generation)):
        json_bytes(found.to_dict(), name)  # before anything is written

    def finish(folder: Path) -> list[str]:
        config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        if len(placed) > 1:
            write_json(folder / INDEX, weight_index(placed))
        return write_hf_tokenizer(model.tokenizer, folder, instruct)

    files = tuple(NewFile(name, tuple(shard), write_shard) for name, shard in placed.items())
    return Target(files, finish, tensors, notes=description_notes(model))
