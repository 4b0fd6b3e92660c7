"""safetensors: eight bytes of length, a JSON header, then the tensors' bytes back to back.

Reading gives views of the mapped file. Writing streams: the header first, from the shapes alone, then one tensor at a
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
from puna.files import atomic_write
from puna.formats.blocks import FORMATS, I32, BlockFormat, StoredTensor
from puna.formats.mapped import map_file
from puna.formats.new_tensor import NewTensor

HEADER_LIMIT = 16 * 2**20
"""Largest header read, bytes. The format allows 100 MB; the 1,138 tensors of the largest LLaMA need 0.2 MB."""

_BY_NAME = {item.safetensors: item for item in (*FORMATS.values(), I32) if item.safetensors is not None}


@dataclass(frozen=True)
class SafetensorsFile:
    """An open file: its free-form `metadata` and its `tensors`, in the order of their bytes."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]


def open_safetensors(path: Path) -> SafetensorsFile:
    """Opens `path`; costs the header only.

    Raises:
        CheckpointError: the header is not well-formed, or does not describe each byte of the file exactly once.
    """
    data = map_file(path)
    if len(data) < 8:
        raise CheckpointError(f"{path}: {len(data)} bytes; a safetensors file has at least 8. Download it again")
    size = int.from_bytes(data[:8].tobytes(), "little")
    if size > min(HEADER_LIMIT, len(data) - 8):
        raise CheckpointError(
            f"{path}: the header says it has {size} bytes; the file has {len(data) - 8} after it and the limit is "
            f"{HEADER_LIMIT}. The file is truncated or not safetensors; download it again"
        )
    header = _parse_header(path, data[8 : 8 + size].tobytes())
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to strings")
    return SafetensorsFile(path, metadata, _views(path, header, data[8 + size :]))


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(
                    f"{path}: the header names {name!r} twice; the file is damaged, download it again"
                )
            found[name] = value
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(
            f"{path}: the header is not JSON ({exc}); the file is damaged, download it again"
        ) from exc
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a JSON {type(header).__name__}; an object is needed")
    return header


def _views(path: Path, header: dict[str, Any], data: NDArray[np.uint8]) -> dict[str, StoredTensor]:
    spans = sorted((*_span(path, name, entry), name) for name, entry in header.items())
    tensors = {}
    at = 0
    for begin, end, name in spans:
        if begin != at:
            fault = "overlaps the tensor before it" if begin < at else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {name!r} starts at byte {begin}, not {at}: it {fault}")
        if end > len(data):
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {end} of the data; the file has {len(data)}. Download it again"
            )
        try:
            tensors[name] = StoredTensor(name, *_type(path, name, header[name]), data[begin:end])
        except CheckpointError as exc:
            raise CheckpointError(f"{path}: {exc}") from exc
        at = end
    if at != len(data):
        raise CheckpointError(f"{path}: {len(data) - at} bytes follow the last tensor; the file is damaged")
    return tensors


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{path}: tensor {name!r} has data_offsets {str(offsets)[:80]}; two offsets are needed")
    return offsets[0], offsets[1]


def _type(path: Path, name: str, entry: dict[str, Any]) -> tuple[tuple[int, ...], BlockFormat]:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in _BY_NAME:
        raise CheckpointError(f"tensor {name!r} has the type {str(kind)[:40]}; puna reads {', '.join(_BY_NAME)}")
    if not isinstance(shape, list) or not _whole_numbers(shape):
        raise CheckpointError(f"tensor {name!r} has the shape {str(shape)[:80]}; whole numbers are needed")
    return tuple(shape), _BY_NAME[kind]


def _whole_numbers(items: list[Any]) -> bool:
    return all(type(item) is int and item >= 0 for item in items)


def write_safetensors(path: Path, tensors: Sequence[NewTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes `tensors` in their order, holding one at a time; the file appears under its name once it is whole.

    Raises:
        CheckpointError: a name twice, a format safetensors does not know, or data that does not fit its shape.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for tensor in tensors:
        kind, size = tensor.format.safetensors, tensor.size
        if kind is None:
            raise CheckpointError(
                f"tensor {tensor.name!r} is {tensor.format.name}; safetensors holds {', '.join(_BY_NAME)}"
            )
        if tensor.name in header or tensor.name == "__metadata__":
            raise CheckpointError(f"tensor name {tensor.name!r} is given twice or reserved; rename one")
        header[tensor.name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors:
            for piece in tensor.pieces():
                file.write(piece)
