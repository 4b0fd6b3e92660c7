"""Meta's layout: `params.json`, `tokenizer.model`, and shards that each hold a slice of every matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puna.checkpoint.meta import same_bytes, shard_name
from puna.checkpoint.meta_params import LLAMA3_VOCABULARY, PARAMS, RELEASES, params_from_config, read_as
from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors, from_hf, interleaved_rows, meta_split
from puna.checkpoint.weight import Rows
from puna.config import LlamaConfig
from puna.convert.gguf_metadata import description_notes
from puna.convert.lazy_rows import Reordered, columns
from puna.convert.model import Model, main_type, plain
from puna.convert.target import NewFile, Target, new_tensor
from puna.convert.tokenizer_files import write_meta_tokenizer
from puna.errors import CheckpointError
from puna.files import write_json
from puna.formats.blocks import BlockFormat
from puna.formats.new_tensor import NewTensor
from puna.formats.torch_zip_writer import write_torch_zip

_FACTOR = "rope_scaling factor"

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
    usual = len(model.files) if model.kind == "meta" else published_shards(config)
    count = usual if shards is None else shards
    _check_divisible(config, count)
    main = main_type(model, dtype)
    tensors = {
        name: plain(model.tensors[name], main, dtype is not None)
        for name, _ in expected_tensors(config, "lm")
        if name in model.tensors
    }
    stored = dict(tensors)
    if config.tie_word_embeddings:
        stored[HEAD] = stored[EMBEDDING]  # Meta's code has no tied head: it loads both
    version, notes = _unsaid(model, params)
    notes += [*model.generation_notes(), *description_notes(model)]
    if not config.tie_word_embeddings and same_bytes(tensors[EMBEDDING], tensors[HEAD]):
        del tensors[HEAD]
        notes.append("head and embedding are equal, which readers take for tied ones")

    def finish(folder: Path) -> list[str]:
        notes = write_meta_tokenizer(model.tokenizer, folder)
        write_json(folder / PARAMS, params)
        return notes

    files = [
        NewFile(shard_name(number), tuple(_slices(config, stored, number, count)), write_torch_zip)
        for number in range(count)
    ]
    return Target(tuple(files), finish, tensors, notes=notes, llama_version=version)


def _unsaid(model: Model, params: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The release that Meta's files are best read as, None the one they show, and what even then is not in them."""
    found = {version: _differences(model, params, version) for version in (None, *RELEASES)}
    # The factor changes what is computed, the others only how the model is used.
    nearest = min(found, key=lambda version: (_FACTOR in found[version], len(found[version])))
    notes = [f"{name} {said}: Meta's files do not say it" for name, said in found[nearest].items()]
    if nearest is not None:
        notes.append(f"the files do not show their release: `puna convert` reads them with --llama-version {nearest}")
    return nearest, notes


def _differences(model: Model, params: Mapping[str, Any], version: str | None) -> dict[str, str]:
    config = model.config
    read, generation = read_as(params, config.vocab_size, version)
    factor, read_factor = ((one.rope_scaling or {}).get("factor") for one in (config, read))
    ends, read_ends = ([*sorted(ids)] for ids in (model.generation.eos_token_ids, generation.eos_token_ids))
    return {
        what: f"{ours}, read as {theirs}"
        for what, ours, theirs in (
            ("context of", config.max_position_embeddings, read.max_position_embeddings),
            (_FACTOR, factor, read_factor),
            ("bos_token_id", model.bos_token_id, read.bos_token_id),
            ("pad_token_id", model.pad_token_id, read.pad_token_id),
            ("ends of answers", ends, read_ends),
        )
        if ours != theirs
    }


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
        if name == EMBEDDING and config.vocab_size >= LLAMA3_VOCABULARY:
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
