"""The tensors of a model, divided among weight files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.errors import CheckpointError, show
from puna.files import PartName
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.new_tensor import Buffer, NewTensor, Producer
from puna.formats.safetensors import write_safetensors
from puna.saving.weight_files import SAFETENSORS, WeightFiles

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_BY_NAME = {name: item for item in FORMATS.values() for name in (item.name, item.torch) if name is not None}


def new_tensor(name: str, kind: str, shape: tuple[int, ...], data: Buffer | Producer) -> NewTensor:
    """Returns a tensor to write; its type has puna's or torch's name.

    Raises:
        CheckpointError: the files cannot hold this type.
    """
    return NewTensor(name, _format(name, kind), tuple(shape), data)


def split_into_shards(
    tensors: Sequence[NewTensor],
    max_shard_size: int | str,
    count: int | None = None,
    files: WeightFiles = SAFETENSORS,
) -> dict[str, list[NewTensor]]:
    """Returns the names of a model's files, and the tensors of each in order.

    Args:
        max_shard_size: as in `save_checkpoint`.
        count: the number of files of about equal size, instead of a maximum size; at most the number of tensors.
        files: the names of the files.
    """
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise CheckpointError(f"{len(tensors)} tensors have only {len(names)} different names; give each a unique name")
    shards = _split_by_size(tensors, parse_size(max_shard_size)) if count is None else _divide(tensors, count)
    if len(shards) == 1:
        return {files.single: shards[0]}
    return {str(PartName(files.stem, i, len(shards), files.ending)): shard for i, shard in enumerate(shards, 1)}


def write_shard(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Writes one file of a model."""
    # transformers requires the framework; "pt" is the only value that every release accepts.
    write_safetensors(path, tensors, {"format": "pt"})


def weight_index(shards: Mapping[str, Sequence[NewTensor]]) -> dict[str, Any]:
    """Returns the content of the index of several files."""
    weight_map = {tensor.name: file for file, shard in shards.items() for tensor in shard}
    total = sum(tensor.size for shard in shards.values() for tensor in shard)
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def parse_size(size: int | str) -> int:
    """Returns the bytes of a size: a number, or a string with a decimal or binary unit."""
    match = re.fullmatch(r"(\d{1,15})\s*([KMG]?I?B?)", str(size).strip().upper())
    if match is None or match[2] not in _UNITS or int(match[1]) < 1:
        raise CheckpointError(
            f"the size of a shard is {show(size)}; give bytes, or a number with KB, MB, GB, KiB, MiB or GiB"
        )
    return int(match[1]) * _UNITS[match[2]]


def _format(name: str, kind: str) -> BlockFormat:
    form = _BY_NAME.get(kind)
    if form is None or form.safetensors is None:
        names = ", ".join(str(item.torch) for item in FORMATS.values() if item.safetensors is not None)
        raise CheckpointError(f"tensor {name!r} has the type {show(kind)}; puna writes {names} to weight files")
    return form


def _split_by_size(tensors: Sequence[NewTensor], limit: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size
    return shards


def _divide(tensors: Sequence[NewTensor], count: int) -> list[list[NewTensor]]:
    """Divides the tensors among `count` files by the position of each tensor's middle; no file is empty."""
    total = sum(tensor.size for tensor in tensors)
    shards: list[list[NewTensor]] = [[]]
    before = 0
    for number, tensor in enumerate(tensors):
        due = (before + tensor.size / 2) * count >= total * len(shards)
        required = len(tensors) - number == count - len(shards)  # one tensor for each remaining file
        if shards[-1] and len(shards) < count and (due or required):
            shards.append([])
        shards[-1].append(tensor)
        before += tensor.size
    return shards
