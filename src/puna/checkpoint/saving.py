"""Weights written in Hugging Face's layout: one safetensors file, or several and an index."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from puna.errors import CheckpointError
from puna.files import write_json
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.safetensors import Buffer, NewTensor, Producer, write_safetensors

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_BY_NAME = {name: item for item in FORMATS.values() for name in (item.name, item.torch) if name is not None}


def save_weights(
    folder: str | Path,
    tensors: Iterable[tuple[str, str, tuple[int, ...], Buffer | Producer]],
    max_shard_size: int | str = "5GB",
) -> list[Path]:
    """Writes `tensors` into `folder`, which is made if needed; returns the files, the index last.

    All shards are written elsewhere first; then those of an earlier save go, the new ones take their places, and the
    index comes last. So an interrupted save leaves the old weights or an unreadable folder, never a mixture.

    Args:
        folder: where to write.
        tensors: (name, type, shape, data): the type as puna or torch names it ("bf16", "bfloat16"); data as bytes in
            C order, or a function that makes them when their turn comes, so that only one tensor is ever held.
        max_shard_size: bytes, or a string such as "5GB" or "200MiB"; a larger tensor has a file of its own.

    Raises:
        CheckpointError: an unknown type, a name twice, data that does not fit its shape, or a size that cannot be read.
    """
    target = Path(folder)
    new = [NewTensor(name, _format(name, kind), tuple(shape), data) for name, kind, shape, data in tensors]
    shards = _split(new, parse_size(max_shard_size))
    files = [_SINGLE]
    if len(shards) > 1:
        files = [f"model-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
    placed = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
    if len(placed) != len(new):
        raise CheckpointError(f"{len(new)} tensors under {len(placed)} names; each tensor needs its own")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as place:
        for file, shard in zip(files, shards, strict=True):
            # transformers asks for the framework; "pt" is the only value that every release takes.
            write_safetensors(Path(place, file), shard, {"format": "pt"})
        for path in target.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        for file in files:
            Path(place, file).replace(target / file)
    if len(shards) > 1:
        total = sum(tensor.format.size(tensor.shape) for tensor in new)
        write_json(target / _INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
        files.append(_INDEX)
    return [target / file for file in files]


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


def _split(tensors: list[NewTensor], limit: int) -> list[list[NewTensor]]:
    shards: list[list[NewTensor]] = [[]]
    held = 0
    for tensor in tensors:
        size = tensor.format.size(tensor.shape)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += size
    return shards
