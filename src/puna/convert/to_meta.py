"""Meta's layout: `params.json`, `tokenizer.model`, and shards that each hold a slice of every matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.checkpoint import Checkpoint, Weight
from puna.checkpoint.meta import same_bytes, shard_name
from puna.checkpoint.meta_params import LLAMA3_VOCABULARY, PARAMS, RELEASES, params_from_config, read_as
from puna.checkpoint.names import EMBEDDING, HEAD, from_hf, interleaved_rows, meta_split
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.convert.lazy_rows import columns
from puna.convert.options import Options
from puna.convert.settings import config_notes, description_notes, generation_notes, special_id
from puna.convert.target import NewFile, Target, find_dtype, new_tensor, plain_tensors
from puna.convert.tokenizer_files import write_meta_tokenizer
from puna.errors import CheckpointError
from puna.files import write_json
from puna.formats.new_tensor import NewTensor
from puna.formats.torch_zip_writer import write_torch_zip

_FACTOR = "rope_scaling factor"

_MAX_SHARDS = 100
"""The number of a shard has two digits in the file's name."""


def published_shards(config: LlamaConfig) -> int:
    """Returns the number of shards in which Meta published models of this shape; 1 for other shapes."""
    if config.hidden_size == 8192:
        return 4 if config.intermediate_size == 22016 and config.num_key_value_heads == 8 else 8
    return {5120: 2, 6656: 4, 16384: 8}.get(config.hidden_size, 1)


def meta_target(checkpoint: Checkpoint, options: Options) -> Target:
    """Returns the files of a folder in Meta's layout.

    The number of shards is `options.shards`, else that of a source in Meta's layout, else that of Meta's release.

    Raises:
        CheckpointError: Meta's format has no equivalent of a property of the model, or the model cannot be divided into
            that many shards.
    """
    dtype = find_dtype(options.dtype)
    if checkpoint.head != "lm":
        raise CheckpointError(f"the model's head is {checkpoint.head!r}; Meta's format has language models only")
    config = checkpoint.config
    params = params_from_config(config)
    usual = len(checkpoint.files) if checkpoint.kind == "meta" else published_shards(config)
    count = usual if options.shards is None else options.shards
    _check_divisible(config, count)
    tensors = plain_tensors(checkpoint, dtype)
    stored = dict(tensors)
    if config.tie_word_embeddings:
        stored[HEAD] = stored[EMBEDDING]  # Meta's code has no tied head: it loads both
    version, notes = _nearest_release(checkpoint, params)
    notes += [*config_notes(checkpoint), *generation_notes(checkpoint), *description_notes(checkpoint)]
    if not config.tie_word_embeddings and same_bytes(tensors[EMBEDDING], tensors[HEAD]):
        del tensors[HEAD]
        notes.append("head and embedding are equal; readers of Meta's files will treat them as tied")

    def finish(folder: Path) -> list[str]:
        notes = write_meta_tokenizer(checkpoint.tokenizer, folder)
        write_json(folder / PARAMS, params)
        return notes

    files = [
        NewFile(shard_name(number), tuple(_slices(config, stored, number, count)), write_torch_zip)
        for number in range(count)
    ]
    return Target(tuple(files), finish, tensors, notes=notes, llama_version=version)


def _nearest_release(checkpoint: Checkpoint, params: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """Returns (release, notes): the release whose defaults lose the fewest settings, and notes on the lost settings.

    A release of None means the one that readers detect from the files.
    """
    losses = {version: _differences(checkpoint, params, version) for version in (None, *RELEASES)}
    # The factor changes the model's output; the other settings change only how the model is used.
    nearest = min(losses, key=lambda version: (_FACTOR in losses[version], len(losses[version])))
    notes = [f"{name} {values}, since Meta's files do not contain it" for name, values in losses[nearest].items()]
    if nearest is not None:
        notes.append(f"the files do not show their release: they must be read with llama_version {nearest}")
    return nearest, notes


def _differences(checkpoint: Checkpoint, params: Mapping[str, Any], version: str | None) -> dict[str, str]:
    """Returns the settings that differ when the files are read as release `version`."""
    config = checkpoint.config
    read, generation = read_as(params, config.vocab_size, version)
    factor, read_factor = ((one.rope_scaling or {}).get("factor") for one in (config, read))
    eos, read_eos = ([*sorted(ids)] for ids in (checkpoint.generation.eos_token_ids, generation.eos_token_ids))
    return {
        name: f"{value}, read as {read_value}"
        for name, value, read_value in (
            ("context of", config.max_position_embeddings, read.max_position_embeddings),
            (_FACTOR, factor, read_factor),
            ("bos_token_id", special_id(checkpoint, "bos_token_id"), read.bos_token_id),
            ("pad_token_id", special_id(checkpoint, "pad_token_id"), read.pad_token_id),
            ("EOS tokens", eos, read_eos),
        )
        if value != read_value
    }


def _check_divisible(config: LlamaConfig, count: int) -> None:
    if not 0 < count <= _MAX_SHARDS:
        raise CheckpointError(f"{count} shards; give a number from 1 to {_MAX_SHARDS}")
    kv = config.num_key_value_heads
    for name, size in (
        ("attention heads", config.num_attention_heads),
        ("feed-forward columns", config.intermediate_size),
        ("hidden columns", config.hidden_size),
        ("rows of vocabulary", config.vocab_size),
    ):
        if size % count:
            raise CheckpointError(
                f"{size} {name} cannot be divided among {count} shards; give another number of shards"
            )
    if kv % count and count % kv:
        raise CheckpointError(
            f"{kv} key-value heads cannot be divided among {count} shards; give another number of shards"
        )


def _slices(config: LlamaConfig, tensors: dict[str, RowSource], number: int, count: int) -> Iterator[NewTensor]:
    """Yields the tensors of shard `number` of `count`."""
    for name, tensor in tensors.items():
        meta = from_hf(name, "meta")
        assert meta is not None, "params_from_config refuses biases, the only tensors without a name in Meta's files"
        order = interleaved_rows(name, config)
        source: RowSource = tensor if order is None else Weight(name, (tensor,), order=np.argsort(order))
        axis = meta_split(name, tensor.shape)
        if name == EMBEDDING and config.vocab_size >= LLAMA3_VOCABULARY:
            axis = 0
        if axis is None or count == 1:
            yield new_tensor(meta, source)
        elif axis == 1:
            width = tensor.shape[1] // count
            yield new_tensor(meta, columns(source, number * width, (number + 1) * width))
        else:
            parts = count
            if ".k_proj." in name or ".v_proj." in name:  # if there are fewer heads, shards share them
                parts = min(count, config.num_key_value_heads)
            height, part = tensor.shape[0] // parts, number * parts // count
            yield new_tensor(meta, source, part * height, (part + 1) * height)
