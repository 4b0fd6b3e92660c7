"""Meta's layout: `params.json`, `tokenizer.model`, and shards that each hold a slice of every matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from puna.checkpoint.convert.model import Model, main_type, plain
from puna.checkpoint.convert.rows import Reordered, Rows, columns
from puna.checkpoint.convert.target import NewFile, Target, new_tensor
from puna.checkpoint.convert.tokenizer_files import write_meta_tokenizer
from puna.checkpoint.meta import shard_name
from puna.checkpoint.meta_params import LLAMA3_VOCABULARY, PARAMS, params_from_config
from puna.checkpoint.names import expected_tensors, from_hf, interleaved_rows, meta_split
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.files import write_json
from puna.formats.blocks import BlockFormat
from puna.formats.new_tensor import NewTensor
from puna.formats.torch_zip_writer import write_torch_zip

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"

_MOST = 100
"""Shards have two digits."""


def published_shards(config: LlamaConfig) -> int:
    """The number of shards Meta published models of this shape in; 1 for others."""
    if config.hidden_size == 8192:
        return 4 if config.intermediate_size == 22016 and config.num_key_value_heads == 8 else 8
    return {5120: 2, 6656: 4, 16384: 8}.get(config.hidden_size, 1)


def meta_target(model: Model, dtype: BlockFormat | None, shards: int | None = None) -> Target:
    """The files of a folder; `shards` None means as many as the source had, or as Meta published.

    Raises:
        CheckpointError: the model has something Meta's format has not, or cannot be divided so.
    """
    if model.head != "lm":
        raise CheckpointError(f"the model's head is {model.head!r}; Meta's format has language models only")
    config = model.config
    params = params_from_config(config)
    count = shards or (len(model.files) if model.kind == "meta" else published_shards(config))
    _check_divisible(config, count)
    main = main_type(model, dtype)
    tensors = {
        name: plain(model.tensors[name], main, dtype is not None)
        for name, _ in expected_tensors(config, "lm")
        if name in model.tensors
    }
    stored = dict(tensors)
    if config.tie_word_embeddings:
        stored[_HEAD] = stored[_EMBEDDING]  # Meta's code has no tied head: it loads both

    def finish(folder: Path) -> list[str]:
        notes = write_meta_tokenizer(model.tokenizer, folder)
        write_json(folder / PARAMS, params)
        return notes

    files = [
        NewFile(shard_name(number), tuple(_slices(config, stored, number, count)), write_torch_zip)
        for number in range(count)
    ]
    return Target(tuple(files), finish, tensors)


def _check_divisible(config: LlamaConfig, count: int) -> None:
    if not 0 < count <= _MOST:
        raise CheckpointError(f"{count} shards; give a number from 1 to {_MOST}")
    kv = config.num_key_value_heads
    for what, size in (
        ("heads", config.num_attention_heads),
        ("feed-forward width", config.intermediate_size),
        ("width", config.hidden_size),
        ("vocabulary", config.vocab_size),
    ):
        if size % count:
            raise CheckpointError(f"a {what} of {size} cannot be divided among {count} shards; give another --shards")
    if kv % count and count % kv:
        raise CheckpointError(f"{kv} key-value heads cannot be divided among {count} shards; give another --shards")


def _slices(config: LlamaConfig, tensors: dict[str, Rows], number: int, count: int) -> Iterator[NewTensor]:
    """What shard `number` of `count` holds."""
    for name, rows in tensors.items():
        meta = from_hf(name, "meta")
        assert meta is not None, "biases are refused before"
        order = interleaved_rows(name, config)
        source: Rows = rows if order is None else Reordered(rows, np.argsort(order))
        axis = meta_split(name, rows.shape)
        if name == _EMBEDDING and config.vocab_size >= LLAMA3_VOCABULARY:
            axis = 0
        if axis is None or count == 1:
            yield new_tensor(meta, source)
        elif axis == 1:
            width = rows.shape[1] // count
            yield new_tensor(meta, columns(source, number * width, (number + 1) * width))
        else:
            parts = count
            if ".k_proj." in name or ".v_proj." in name:  # more shards than heads: consecutive ones have the same
                parts = min(count, config.num_key_value_heads)
            height, part = rows.shape[0] // parts, number * parts // count
            yield new_tensor(meta, source, part * height, (part + 1) * height)
