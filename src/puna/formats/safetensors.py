"""Reads and writes safetensors files: a length of eight bytes, a JSON header, then the tensors' bytes without gaps.

Reading returns views of the mapped file. Writing needs only the shapes for the header, then one piece of a tensor at a
time. The format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.files import atomic_write, parse_json
from puna.formats.blocks import FORMATS, PARTS, BlockFormat, StoredTensor
from puna.formats.mapped import map_file, read_bytes
from puna.formats.new_tensor import NewTensor

HEADER_LIMIT = 16 * 2**20
"""Maximum size of a header, in bytes. The format allows 100 MB; the 1,138 tensors of the largest LLaMA need 0.2 MB."""

_BY_NAME = {item.safetensors: item for item in (*FORMATS.values(), *PARTS) if item.safetensors is not None}


@dataclass(frozen=True)
class SafetensorsFile:
    """An open safetensors file: its free-form `metadata` and its `tensors`, in the order of their bytes."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def open_safetensors(path: Path) -> SafetensorsFile:
    """Opens a safetensors file; reads the header, not the tensor data.

    Raises:
        CheckpointError: the header is malformed, or a byte of the data belongs to no tensor or to several.
    """
    data = map_file(path)
    if len(data) < 8:
        raise CheckpointError(f"{path}: {len(data)} bytes; a safetensors file has at least 8. Download it again")
    size = int.from_bytes(read_bytes(data[:8]).tobytes(), "little")
    if size > min(HEADER_LIMIT, len(data) - 8):
        raise CheckpointError(
            f"{path}: the file announces a header of {size} bytes; {len(data) - 8} bytes follow and the limit is "
            f"{HEADER_LIMIT}. The file is truncated or not safetensors; download it again"
        )
    header = _parse_header(path, read_bytes(data[8 : 8 + size]).tobytes())
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to strings")
    return SafetensorsFile(path, metadata, _views(path, header, data[8 + size :]))


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names: dict[str, Any] = {}
        for name, value in pairs:
            if name in names:
                raise CheckpointError(f"{path}: the header names {name!r} twice; download the file again")
            names[name] = value
        return names

    return parse_json(text, f"{path}: the header", CheckpointError, pairs_hook=unique)


def _views(path: Path, header: dict[str, Any], data: NDArray[np.uint8]) -> dict[str, StoredTensor]:
    spans = sorted((*_span(path, name, entry), name) for name, entry in header.items())
    tensors = {}
    position = 0
    for begin, end, name in spans:
        if begin != position:
            fault = "overlaps the previous tensor" if begin < position else "leaves a gap after the previous tensor"
            raise CheckpointError(f"{path}: tensor {name!r} starts at byte {begin}, not {position}: it {fault}")
        if end > len(data):
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {end} of the data; the file has {len(data)}. Download it again"
            )
        try:
            tensors[name] = StoredTensor(name, *_type(path, name, header[name]), data[begin:end])
        except CheckpointError as exc:
            raise CheckpointError(f"{path}: {exc}") from exc
        position = end
    if position != len(data):
        raise CheckpointError(f"{path}: {len(data) - position} bytes follow the last tensor; the file is damaged")
    return tensors


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path}: tensor {name!r} has data_offsets {str(offsets)[:80]}; expected two offsets")
    return offsets[0], offsets[1]


def _type(path: Path, name: str, entry: dict[str, Any]) -> tuple[tuple[int, ...], BlockFormat]:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in _BY_NAME:
        raise CheckpointError(f"tensor {name!r} has the type {str(kind)[:40]}; puna reads {', '.join(_BY_NAME)}")
    if not isinstance(shape, list) or not _are_counts(shape):
        raise CheckpointError(f"tensor {name!r} has the shape {str(shape)[:80]}; expected a list of integers")
    return tuple(shape), _BY_NAME[kind]


def _are_counts(items: list[Any]) -> bool:
    return all(type(item) is int and item >= 0 for item in items)


def write_safetensors(path: Path, tensors: Sequence[NewTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically, with one piece of a tensor in memory at a time.

    Raises:
        CheckpointError: a duplicate name, a format that safetensors does not have, or data of the wrong size.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for tensor in tensors:
        kind, size = tensor.format.safetensors, tensor.size
        if kind is None:
            raise CheckpointError(
                f"tensor {tensor.name!r} is {tensor.format.name}; safetensors holds {', '.join(_BY_NAME)}"
            )
        if tensor.name in header or tensor.name == "__metadata__":
            raise CheckpointError(f"tensor name {tensor.name!r} is used twice or reserved; rename the tensor")
        header[tensor.name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            for piece in tensor.pieces():
                file.write(piece)
