"""Reads GGUF files, versions 2 and 3, little-endian: typed metadata, tensor descriptions, aligned tensor data.

A model may be split into several GGUF files, its parts. The first part holds the metadata; every part has the keys
`split.no`, `split.count` and `split.tensors.count`. Given any part, `open_gguf` opens all parts.

Returns plain Python values and views of the mapped file; `checkpoint/` and `tokenizer/` interpret the metadata. The
format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError, show
from puna.files import PartName, parse_part_name
from puna.formats.blocks import FORMATS, StoredTensor
from puna.formats.gguf_values import MAX_NAMES, Cursor, Metadata, read_value
from puna.formats.mapped import map_file

_BY_ID = {item.ggml_id: item for item in FORMATS.values()}

_UNSUPPORTED = {
    4: "q4_2", 5: "q4_3", 9: "q8_1", 15: "q8_K", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64",
    31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8", 36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8",
    40: "nvfp4", 41: "q1_0",
}  # fmt: skip
"""Names of ggml's other types, for error messages."""

_NUMBER, _COUNT, _TOTAL = "split.no", "split.count", "split.tensors.count"
"""Metadata of each part: its number, from 0; the number of parts; and the number of tensors in all parts together."""

_REMEDY = "the file belongs to another model or was renamed, download all parts again"

_MAX_DIMS = 4
"""GGML_MAX_DIMS."""


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file, or all parts of a split model.

    Attributes:
        path: the file, or the first part.
        parts: every file, in order.
        metadata: of the file, or of the first part.
        tensors: in the order of the files' descriptions; their shapes have the outermost axis first.
        states: for each file, values that change when the file changes.
    """

    path: Path
    parts: tuple[Path, ...]
    version: int
    metadata: Metadata
    tensors: dict[str, StoredTensor]
    states: tuple[tuple[int, ...], ...]


def open_gguf(path: Path) -> GgufFile:
    """Opens a GGUF file, or a split model of which `path` is any part; reads the headers, not the tensor data.

    A model that is open already is not read again.

    Raises:
        CheckpointError: a file is not GGUF 2 or 3, is truncated or contradicts itself; or a part is missing or belongs
            to another model.
    """
    model = _open_models.get(path)
    if model is None or model.states != _states(model.parts):
        file = _open_file(path)
        count = _integer(file, _COUNT, 1)
        model = _open_models[path] = file if count in (0, 1) else _join(file, count)
    return model


_open_models: WeakValueDictionary[Path, GgufFile] = WeakValueDictionary()
"""The models in use, by path: the header of a large vocabulary takes 0.1 s to read."""


def _states(paths: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    """Returns values that change when a file is replaced or written."""
    states = [path.stat() if path.exists() else None for path in paths]
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) if s else () for s in states)


def _integer(file: GgufFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int:
        raise CheckpointError(f"{file.path}: metadata key {key!r} must be an integer; it is {show(value)}")
    return value


def _join(file: GgufFile, count: int) -> GgufFile:
    """Opens the other parts of a model in `count` parts, and joins their tensors."""
    name = parse_part_name(file.path.name)
    if name is None or name.count != count or not 1 <= name.number <= count:
        raise CheckpointError(
            f"{file.path}: the file is one part of a split model ({_COUNT} is {count}), but its name does not end in "
            f"{PartName('', 1, count)} or the number of another part. Give the parts the names that they were "
            "published with, or join them with `llama-gguf-split --merge`"
        )
    paths = [file.path.with_name(str(replace(name, number=number))) for number in range(1, name.count + 1)]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{missing[0]}: no such file ({len(missing)} of {count} parts missing). Put all parts of the model into "
            "one folder"
        )
    parts = [file if path == file.path else _open_file(path) for path in paths]
    tensors: dict[str, StoredTensor] = {}
    for number, part in enumerate(parts):
        _check_part(part, number, parts[0])
        for tensor in tensors.keys() & part.tensors.keys():
            raise CheckpointError(f"{part.path}: tensor {tensor!r} is in an earlier part of the model too; {_REMEDY}")
        tensors |= part.tensors
    total = _integer(parts[0], _TOTAL, len(tensors))
    if total != len(tensors):
        raise CheckpointError(
            f"{parts[0].path}: {_TOTAL} is {total}, but the {count} parts have {len(tensors)} tensors; {_REMEDY}"
        )
    states = tuple(part.states[0] for part in parts)
    return replace(parts[0], parts=tuple(paths), tensors=tensors, states=states)


def _check_part(part: GgufFile, number: int, first: GgufFile) -> None:
    """Raises CheckpointError if the `split.no` of a part is not `number`, or its metadata is not the first part's."""
    stored = _integer(part, _NUMBER, -1)
    if stored != number:
        state = "missing" if stored == -1 else str(stored)
        raise CheckpointError(f"{part.path}: {_NUMBER} is {state}, but the file's name implies {number}; {_REMEDY}")
    for key in part.metadata:
        if key in (_NUMBER, "general.alignment"):  # both describe one file
            continue
        values: tuple[Any, Any] = part.metadata[key], first.metadata.get(key)
        if type(values[0]) is not type(values[1]) or not np.array_equal(*values):
            raise CheckpointError(
                f"{part.path}: the metadata key {key!r} is {str(values[0])[:40]}, but {str(values[1])[:40]} in the "
                f"first part; {_REMEDY}"
            )


def _open_file(path: Path) -> GgufFile:
    states = _states((path,))
    cursor = Cursor(map_file(path))
    try:
        version = _version(cursor)
        tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
        # Minimum sizes: 24 bytes for the description of a tensor with an empty name, 13 for a bool with an empty key.
        cursor.expect(tensor_count, 24, "tensors", MAX_NAMES)
        cursor.expect(key_count, 13, "metadata keys", MAX_NAMES)
        metadata = _metadata(cursor, key_count)
        tensors = _tensors(cursor, tensor_count, _alignment(metadata))
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return GgufFile(path, (path,), version, Metadata(path, metadata), tensors, states)


def _version(cursor: Cursor) -> int:
    magic = bytes(cursor.take(4))
    if magic != b"GGUF":
        raise CheckpointError(f"begins with {magic!r}, not with GGUF: this is not a GGUF file")
    version = cursor.number("<I")
    if version & 0xFFFF == 0 and version:
        raise CheckpointError("the file is big-endian; puna reads only little-endian files: download another")
    if version not in (2, 3):
        raise CheckpointError(f"GGUF version {version}; puna reads 2 and 3, convert the file with a current llama.cpp")
    return version


def _metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise CheckpointError(f"the metadata key {key!r} appears twice; the file is damaged, download it again")
        try:
            metadata[key] = read_value(cursor, cursor.number("<I"))
        except CheckpointError as exc:
            raise CheckpointError(f"metadata key {key!r}: {exc}") from exc
    return metadata


def _alignment(metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise CheckpointError(f"general.alignment is {str(value)[:40]}; it must be a power of two")
    return value


@dataclass(frozen=True)
class _Description:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def _tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, StoredTensor]:
    descriptions = [_description(cursor, alignment) for _ in range(count)]
    data = cursor.data[-(-cursor.position // alignment) * alignment :]
    tensors: dict[str, StoredTensor] = {}
    for item in descriptions:
        if item.name in tensors:
            raise CheckpointError(f"the tensor {item.name!r} appears twice; the file is damaged, download it again")
        tensors[item.name] = _view(item, data)
    spans = sorted((item.offset, item.offset + tensors[item.name].raw.size, item.name) for item in descriptions)
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise CheckpointError(f"tensors {first!r} and {second!r} overlap; the file is damaged, download it again")
    return tensors


def _description(cursor: Cursor, alignment: int) -> _Description:
    name = cursor.string()
    axes = cursor.number("<I")
    if not 1 <= axes <= _MAX_DIMS:
        raise CheckpointError(f"tensor {name!r} has {axes} dimensions; GGUF allows 1 to {_MAX_DIMS}")
    innermost_first = [cursor.number("<Q") for _ in range(axes)]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if offset % alignment:
        raise CheckpointError(f"tensor {name!r} starts at byte {offset} of the data, not a multiple of {alignment}")
    return _Description(name, tuple(reversed(innermost_first)), kind, offset)


def _view(item: _Description, data: NDArray[np.uint8]) -> StoredTensor:
    form = _BY_ID.get(item.kind)
    if form is None:
        kind = _UNSUPPORTED.get(item.kind, "unknown to this version of puna")
        raise CheckpointError(
            f"tensor {item.name!r} is stored as ggml type {item.kind} ({kind}); puna reads {', '.join(FORMATS)}. "
            "Use a file in one of these formats, for instance one whose name contains Q4_K_M or Q8_0"
        )
    try:
        size = form.size(item.shape)
    except CheckpointError as exc:
        raise CheckpointError(f"tensor {item.name!r}: {exc}") from exc
    if size > len(data) - item.offset:
        raise CheckpointError(
            f"tensor {item.name!r} needs {size} bytes from byte {item.offset} of the data; the file has {len(data)}. "
            "It is truncated: download it again"
        )
    return StoredTensor(item.name, item.shape, form, data[item.offset : item.offset + size])
