"""A model written as a Hugging Face folder: configurations, and one safetensors file or several and an index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.checkpoint.replacing import replace_together, staging
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError
from puna.files import folder_path, storage_errors, write_json
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.new_tensor import Buffer, NewTensor, Producer
from puna.formats.safetensors import write_safetensors

_SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|generation_config\.json")
"""Files of an earlier save that must not outlive it."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_BY_NAME = {name: item for item in FORMATS.values() for name in (item.name, item.torch) if name is not None}


def save_checkpoint(
    folder: str | Path,
    config: LlamaConfig,
    tensors: Iterable[tuple[str, str, tuple[int, ...], Buffer | Producer]],
    generation: GenerationConfig | None = None,
    max_shard_size: int | str = "5GB",
) -> list[Path]:
    """Writes a model into `folder`, which is made if needed; returns the files, config.json last.

    All files are written in a folder beside first; then those of an earlier save, its generation_config.json among
    them, go and the new ones take their places (`replace_together`). So a save that fails leaves the earlier one whole,
    and one that is killed never a mixture that loads.

    Args:
        folder: where to write.
        config: written as it is; saying what the tensors are is the caller's duty.
        tensors: (name, type, shape, data): the type as puna or torch names it ("bf16", "bfloat16"); data as bytes in
            C order, or a function that makes them when their turn comes, so that only one tensor is ever held.
        generation: None for a model without a language model's head.
        max_shard_size: bytes, or a string such as "5GB" or "200MiB"; a larger tensor has a file of its own.

    Raises:
        CheckpointError: an unknown type, a name twice, data that does not fit its shape, or a size that cannot be read.
        ConfigError: a configuration that JSON cannot hold.
        StorageError: the disk is full or refuses.
    """
    new = [NewTensor(name, _format(name, kind), tuple(shape), data) for name, kind, shape, data in tensors]
    shards = split_into_shards(new, max_shard_size)
    target = folder_path(folder)
    with storage_errors(target), staging(target) as place:
        config.save_pretrained(place)
        if generation is not None:
            generation.save_pretrained(place)
        for name, shard in shards.items():
            write_shard(place / name, shard)
        names = list(shards)
        if len(shards) > 1:
            write_json(place / INDEX, weight_index(shards))
            names.append(INDEX)
        names += [_GENERATION] if generation is not None else []
        names.append(_CONFIG)
        outdated = [path.name for path in target.iterdir() if _OURS.fullmatch(path.name) and path.name not in names]
        replace_together(place, target, names, outdated)
    return [target / name for name in names]


def split_into_shards(
    tensors: Sequence[NewTensor], max_shard_size: int | str, count: int | None = None
) -> dict[str, list[NewTensor]]:
    """The files of a model and what is in each, in order.

    Args:
        max_shard_size: as in `save_checkpoint`.
        count: the number of files instead, of about the same size; no more than there are tensors.
    """
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise CheckpointError(f"{len(tensors)} tensors under {len(names)} names; each tensor needs its own")
    shards = _split(tensors, parse_size(max_shard_size)) if count is None else _divide(tensors, count)
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {f"model-{at:05}-of-{len(shards):05}.safetensors": shard for at, shard in enumerate(shards, 1)}


def write_shard(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Writes one file of a model."""
    # transformers asks for the framework; "pt" is the only value that every release takes.
    write_safetensors(path, tensors, {"format": "pt"})


def weight_index(shards: Mapping[str, Sequence[NewTensor]]) -> dict[str, Any]:
    """The content of the index of several files."""
    placed = {tensor.name: file for file, shard in shards.items() for tensor in shard}
    total = sum(tensor.size for shard in shards.values() for tensor in shard)
    return {"metadata": {"total_size": total}, "weight_map": placed}


def parse_size(size: int | str) -> int:
    """Bytes from a number or a string with a decimal or binary unit."""
    match = re.fullmatch(r"(\d{1,15})\s*([KMG]?I?B?)", str(size).strip().upper())
    if match is None or match[2] not in _UNITS or int(match[1]) < 1:
        raise CheckpointError(f"size {size!r}; give bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(match[1]) * _UNITS[match[2]]


def _format(name: str, kind: str) -> BlockFormat:
    form = _BY_NAME.get(kind)
    if form is None or form.safetensors is None:
        known = ", ".join(str(item.torch) for item in FORMATS.values() if item.safetensors is not None)
        raise CheckpointError(f"tensor {name!r} has the type {kind!r}; safetensors files of puna hold {known}")
    return form


def _split(tensors: Sequence[NewTensor], limit: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.size > limit:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.size
    return shards


def _divide(tensors: Sequence[NewTensor], count: int) -> list[list[NewTensor]]:
    """`count` files: each tensor goes where its middle falls, but none stays empty."""
    total = sum(tensor.size for tensor in tensors)
    shards: list[list[NewTensor]] = [[]]
    before = 0
    for number, tensor in enumerate(tensors):
        due = (before + tensor.size / 2) * count >= total * len(shards)
        must = len(tensors) - number == count - len(shards)
        if shards[-1] and len(shards) < count and (due or must):
            shards.append([])
        shards[-1].append(tensor)
        before += tensor.size
    return shards
