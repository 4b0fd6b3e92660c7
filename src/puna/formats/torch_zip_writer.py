"""Writing what `torch.save` writes for a state dict, without torch: a stored zip of a pickle and the tensors' bytes.

The pickle is put together opcode by opcode: names, and calls of `torch._utils._rebuild_tensor_v2` on storages that are
given by persistent ids (`torch.serialization`). `torch.load(..., weights_only=True)` reads it, mapped or not.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

from puna.errors import CheckpointError
from puna.files import atomic_write
from puna.formats.new_tensor import NewTensor

_ALIGNMENT = 64
"""Bytes that storages are aligned to, as torch's own writer does: a mapped file can then be used as it is."""

_PADDING = 0x4246
"""Id of the extra field ("FB") that aligns them."""

_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20
"""Bytes of a zip entry's own header, and of the sizes of 64 bits in it."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""Zip's first date, so that the same tensors give the same file."""


def write_torch_zip(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Writes a state dict, holding one piece of a tensor at a time; the file appears once it is whole.

    Raises:
        CheckpointError: a name twice, a format torch does not know, or data that does not fit its shape.
    """
    pickle = state_dict_pickle(tensors)
    root = "archive"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def entry(name: str) -> zipfile.ZipInfo:
            info = zipfile.ZipInfo(f"{root}/{name}", _DATE)
            start = file.tell() + _LOCAL_HEADER + len(info.filename) + _ZIP64_EXTRA + 4
            info.extra = struct.pack("<2H", _PADDING, -start % _ALIGNMENT) + bytes(-start % _ALIGNMENT)
            return info

        for name, text in (("data.pkl", pickle), ("byteorder", b"little"), (".format_version", b"1")):
            with archive.open(entry(name), "w", force_zip64=True) as out:
                out.write(text)
        for key, tensor in enumerate(tensors):
            with archive.open(entry(f"data/{key}"), "w", force_zip64=True) as out:
                for piece in tensor.pieces():
                    out.write(piece)
        with archive.open(entry("version"), "w", force_zip64=True) as out:
            out.write(b"3\n")


def state_dict_pickle(tensors: Sequence[NewTensor]) -> bytes:
    """The pickle (protocol 2) of an ordered dict of contiguous tensors, each with a storage of its own."""
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise CheckpointError(f"{len(tensors)} tensors, some under the same name; each tensor needs its own")
    # PROTO 2; an empty OrderedDict; MARK
    parts = [b"\x80\x02", _global("collections", "OrderedDict"), b")R", b"("]
    for key, tensor in enumerate(tensors):
        parts += [_text(tensor.name), _tensor(tensor, str(key))]
    return b"".join([*parts, b"u."])  # SETITEMS, STOP


def _tensor(tensor: NewTensor, key: str) -> bytes:
    """_rebuild_tensor_v2(storage, offset 0, shape, strides, requires_grad False, hooks OrderedDict())."""
    storage = tensor.format.torch_storage
    if storage is None:
        raise CheckpointError(f"tensor {tensor.name!r} is {tensor.format.name}, which torch has no type for")
    strides, step = [], 1
    for extent in reversed(tensor.shape):
        strides.append(step)
        step *= extent
    persistent = b"(" + _text("storage") + _global("torch", storage) + _text(key) + _text("cpu") + _whole(step) + b"tQ"
    flags = b"\x89" + _global("collections", "OrderedDict") + b")R"
    arguments = b"(" + persistent + _whole(0) + _tuple(tensor.shape) + _tuple(strides[::-1]) + flags + b"t"
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _whole(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_whole, values)) + b"t"
