"""A Hugging Face folder: safetensors shards and their index, the configurations, the tokenizer's files."""

from __future__ import annotations

from pathlib import Path

from puna.checkpoint import Checkpoint
from puna.checkpoint.names import CLASSES, file_name
from puna.config import LlamaConfig
from puna.convert.options import Options
from puna.convert.settings import description_notes
from puna.convert.target import NewFile, Target, find_dtype, main_type, new_tensor, plain_tensors
from puna.convert.tokenizer_files import write_hf_tokenizer
from puna.errors import CheckpointError
from puna.files import json_bytes, write_json
from puna.saving import INDEX, split_into_shards, weight_index, write_shard


def hf_target(checkpoint: Checkpoint, options: Options) -> Target:
    """Returns the files of a folder in Hugging Face's layout.

    Raises:
        CheckpointError: the options request an unknown type, or more shards than there are tensors.
    """
    dtype = find_dtype(options.dtype)
    tensors = plain_tensors(checkpoint, dtype)
    new = [new_tensor(file_name(name, checkpoint.head), source) for name, source in tensors.items()]
    if options.shards is not None and not 0 < options.shards <= len(new):
        raise CheckpointError(f"{options.shards} shards for {len(new)} tensors; give a number from 1 to {len(new)}")
    shards = split_into_shards(new, "5GB" if options.shard_size is None else options.shard_size, options.shards)
    config = LlamaConfig.from_dict(
        checkpoint.config.to_dict(), dtype=main_type(checkpoint, dtype).torch, architectures=[CLASSES[checkpoint.head]]
    )
    json_bytes(config.to_dict(), "config.json")  # raises if JSON cannot hold a value, before anything is written
    checkpoint.generation.to_json_string()  # raises in the same way

    def finish(folder: Path) -> list[str]:
        config.save_pretrained(folder)
        if checkpoint.generation_config is not None:
            checkpoint.generation_config.save_pretrained(folder)
        if len(shards) > 1:
            write_json(folder / INDEX, weight_index(shards))
        return write_hf_tokenizer(checkpoint.tokenizer, folder, options.instruct)

    files = tuple(NewFile(name, tuple(shard), write_shard) for name, shard in shards.items())
    return Target(files, finish, tensors, notes=description_notes(checkpoint))
