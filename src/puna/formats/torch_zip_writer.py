"""Writes a state dict in the format of `torch.save`, without torch: an uncompressed zip of a pickle and tensor bytes.

The pickle is assembled from opcodes: for each tensor its name and a call of `torch._utils._rebuild_tensor_v2` on a
storage with a persistent id (`torch.serialization`). `torch.load(..., weights_only=True)` reads the file, also by mmap.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from puna.errors import CheckpointError
from puna.files import atomic_write
from puna.formats.new_tensor import NewTensor

_ALIGNMENT = 64
"""Alignment of storages in bytes, as in torch's own writer: tensors are then aligned in a mapped file."""

_PADDING = 0x4246
"""Id of the extra field ("FB") that pads an entry to the alignment."""

_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20
"""Sizes of a zip entry's local header and of its zip64 extra field, in bytes."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""Zip's earliest date. With a constant date, equal tensors produce equal files."""


def write_torch_zip(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Writes a state dict atomically, with one piece of a tensor in memory at a time.

    Raises:
        CheckpointError: a duplicate name, a format that torch does not have, or data of the wrong size.
    """
    entries: list[tuple[str, Iterable[bytes | memoryview]]] = [("data.pkl", (state_dict_pickle(tensors),))]
    entries += [("byteorder", (b"little",)), (".format_version", (b"1",))]
    entries += [(f"data/{key}", tensor.pieces()) for key, tensor in enumerate(tensors)]
    entries += [("version", (b"3\n",))]
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, pieces in entries:
            info = zipfile.ZipInfo(f"archive/{name}", _DATE)
            start = file.tell() + _LOCAL_HEADER + len(info.filename) + _ZIP64_EXTRA + 4
            info.extra = struct.pack("<2H", _PADDING, -start % _ALIGNMENT) + bytes(-start % _ALIGNMENT)
            with archive.open(info, "w", force_zip64=True) as out:
                for piece in pieces:
                    out.write(piece)


def state_dict_pickle(tensors: Sequence[NewTensor]) -> bytes:
    """Returns the pickle (protocol 2) of an ordered dict of contiguous tensors, each with its own storage."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise CheckpointError(f"some of {len(tensors)} tensors have the same name; give each a unique name")
    # PROTO 2; an empty OrderedDict; MARK
    parts = [b"\x80\x02", _global("collections", "OrderedDict"), b")R", b"("]
    for key, tensor in enumerate(tensors):
        parts += [_text(tensor.name), _tensor(tensor, str(key))]
    return b"".join([*parts, b"u."])  # SETITEMS, STOP


def _tensor(tensor: NewTensor, key: str) -> bytes:
    """Returns the call _rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, hooks {})."""
    storage = tensor.format.torch_storage
    if storage is None:
        raise CheckpointError(f"tensor {tensor.name!r} is {tensor.format.name}, for which torch has no type")
    strides, count = [], 1
    for extent in reversed(tensor.shape):
        strides.append(count)
        count *= extent
    persistent = (
        b"(" + _text("storage") + _global("torch", storage) + _text(key) + _text("cpu") + _integer(count) + b"tQ"
    )
    flags = b"\x89" + _global("collections", "OrderedDict") + b")R"
    arguments = b"(" + persistent + _integer(0) + _tuple(tensor.shape) + _tuple(strides[::-1]) + flags + b"t"
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
