"""Writes GGUF version 3 files: typed metadata, tensor descriptions, then the tensors' bytes, one piece at a time.

`gguf.py` reads these files. Values get the types that llama.cpp's converter gives them.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.files import atomic_write
from puna.formats.new_tensor import NewTensor

ALIGNMENT = 32
"""Each tensor's offset in the data is a multiple of this many bytes: the format's default."""

Value = bool | int | float | str | Sequence[str] | NDArray[Any]

_NAME_LIMIT = 64
"""GGML_MAX_NAME: llama.cpp refuses longer tensor names."""

_BOOL, _STRING, _ARRAY = 7, 8, 9
_INTEGERS = (
    (4, "I", 0, 2**32), (5, "i", -(2**31), 0), (10, "Q", 0, 2**64), (11, "q", -(2**63), 0),
)  # fmt: skip
"""Integer types in order of preference: GGUF's type number, struct's letter, minimum, and maximum + 1."""

_ELEMENTS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "u8": 10, "i8": 11, "f8": 12}
"""GGUF's type numbers of NumPy's element types."""


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[NewTensor]) -> None:
    """Writes a GGUF file atomically, with one piece of a tensor in memory at a time.

    Args:
        metadata: an int becomes uint32, or int32 if it is negative, or uint64 or int64 if 32 bits are too few; a float
            becomes float32, a `numpy.float64` float64; an array keeps its type; other sequences must contain strings.
        tensors: the tensors, in the order of the file.

    Raises:
        CheckpointError: a duplicate or overlong name, an integer of more than 64 bits, or data of the wrong size.
    """
    header = gguf_header(metadata, tensors)
    with atomic_write(path) as file:
        file.write(header)
        for tensor in tensors:
            for piece in tensor.pieces():
                file.write(piece)
            file.write(bytes(-tensor.size % ALIGNMENT))


def gguf_header(metadata: Mapping[str, Value], tensors: Sequence[NewTensor]) -> bytes:
    """Returns everything before the tensors' bytes, padding included."""
    names = [tensor.name for tensor in tensors]
    overlong = next((name for name in names if len(name.encode()) >= _NAME_LIMIT), None)
    if overlong is not None:
        raise CheckpointError(f"tensor name {overlong!r} is too long: llama.cpp allows fewer than {_NAME_LIMIT} bytes")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{len(names)} tensors have only {len(set(names))} names; give each a unique name")
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    sizes = [-(-tensor.size // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    for tensor, offset in zip(tensors, itertools.accumulate(sizes, initial=0), strict=False):
        innermost_first = tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(innermost_first)}Q", len(innermost_first), *innermost_first))
        parts.append(struct.pack("<IQ", tensor.format.ggml_id, offset))
    size = sum(map(len, parts))
    return b"".join([*parts, bytes(-size % ALIGNMENT)])


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        for kind, code, low, high in _INTEGERS:
            if low <= value < high:
                return struct.pack(f"<I{code}", kind, value)
        raise CheckpointError(f"the number {str(value)[:40]} has more than 64 bits, the maximum in GGUF")
    if isinstance(value, np.float64):
        return struct.pack("<Id", 12, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        kind = _BOOL if value.dtype == np.bool_ else _ELEMENTS[value.dtype.str[1:]]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.astype(value.dtype.newbyteorder("<")).tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + _strings(value)


def _strings(texts: Sequence[str]) -> bytes:
    """Returns the joined `_string` of all texts; packs each length once, since many texts have the same length."""
    raws = [text.encode() for text in texts]
    prefixes = {length: struct.pack("<Q", length) for length in set(map(len, raws))}
    return b"".join([part for raw in raws for part in (prefixes[len(raw)], raw)])
