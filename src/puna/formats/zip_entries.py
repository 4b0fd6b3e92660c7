"""Locates the entries of a zip written by `torch.save` in a mapped file.

Supports only the features that torch uses: uncompressed entries, zip64, data descriptors. Sizes come from the central
directory. Section numbers refer to PKWARE's APPNOTE.TXT, which defines the format.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats.mapped import read_bytes

_END = struct.Struct("<4s4H2LH")  # 4.3.16, signature PK 5 6, followed only by a comment of up to 65,535 bytes
_END64 = struct.Struct("<4sQ2H2L4Q")  # 4.3.14, PK 6 6
_LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15, PK 6 7, directly before the end record
_CENTRAL = struct.Struct("<4s6H3L5H2L")  # 4.3.12, PK 1 2
_LOCAL = struct.Struct("<4s5H3L2H")  # 4.3.7, PK 3 4

_ENCRYPTED = 0x2041
"""Bits of the general-purpose flag that mark encryption: 0, 6 and 13 (4.4.4)."""

_DAMAGED = "the file is truncated or damaged, download it again"


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    header: int  # offset of the local header


def zip_entries(data: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Returns the bytes of each entry by name, as views of `data`, a complete zip file.

    Raises:
        CheckpointError: a malformed directory, a compressed or encrypted entry, entries that overlap or exceed the
            file, or a duplicate name.
    """
    contents: dict[str, NDArray[np.uint8]] = {}
    spans = []
    for entry in _directory(data):
        if entry.name in contents:
            raise CheckpointError(f"the zip entry {entry.name!r} appears twice; {_DAMAGED}")
        start = _start(data, entry)
        contents[entry.name] = data[start : start + entry.size]
        spans.append((entry.header, start + entry.size, entry.name))
    for (_, end, first), (header, _, second) in itertools.pairwise(sorted(spans)):
        if header < end:
            raise CheckpointError(f"the zip entries {first!r} and {second!r} overlap; {_DAMAGED}")
    return contents


def _read(data: NDArray[np.uint8], layout: struct.Struct, position: int, magic: bytes, what: str) -> tuple[int, ...]:
    """Returns the fields of a structure that follow its signature."""
    if not 0 <= position <= len(data) - layout.size:
        raise CheckpointError(f"the zip's {what} would be at byte {position} of {len(data)}; {_DAMAGED}")
    signature, *fields = layout.unpack(read_bytes(data[position : position + layout.size]).data)
    if signature != magic:
        raise CheckpointError(f"the zip's {what} is not at byte {position}; {_DAMAGED}")
    return tuple(fields)


def _directory(data: NDArray[np.uint8]) -> Iterator[_Entry]:
    count, size, offset = _directory_span(data)
    if offset + size > len(data) or count * _CENTRAL.size > size:
        raise CheckpointError(
            f"the zip's directory of {count} entries, {size} bytes, does not fit at byte {offset}; {_DAMAGED}"
        )
    position = offset
    for _ in range(count):
        fields = _read(data, _CENTRAL, position, b"PK\x01\x02", "directory entry")
        _, _, flags, method, _, _, _, packed, full, name_size, extra_size, comment_size, _, _, _, header = fields
        position += _CENTRAL.size
        if position + name_size + extra_size + comment_size > offset + size:
            raise CheckpointError(f"a zip directory entry ends past byte {offset + size}; {_DAMAGED}")
        name = _name(data[position : position + name_size])
        extra = read_bytes(data[position + name_size : position + name_size + extra_size]).tobytes()
        position += name_size + extra_size + comment_size
        full, packed, header = _read_zip64(name, extra, full, packed, header)
        if method != 0 or full != packed or flags & _ENCRYPTED:
            raise CheckpointError(
                f"the zip entry {name!r} is compressed or encrypted (method {method}, flags {flags:#x}); "
                "torch.save writes neither: unpack the file and save it again with torch.save"
            )
        yield _Entry(name, full, header)


def _directory_span(data: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Returns the number of entries, the bytes and the offset of the central directory."""
    tail = read_bytes(data[-(_END.size + 0xFFFF) :]).tobytes()
    index = tail.rfind(b"PK\x05\x06")
    if index < 0:
        raise CheckpointError(f"no zip directory at the end; {_DAMAGED}")
    end = len(data) - len(tail) + index
    *_, count, size, offset, comment = _read(data, _END, end, b"PK\x05\x06", "end record")
    if end + _END.size + comment != len(data):
        raise CheckpointError(f"{len(data) - end - _END.size - comment} bytes after the zip's end record; {_DAMAGED}")
    locator = end - _LOCATOR64.size
    if locator >= 0 and read_bytes(data[locator : locator + 4]).tobytes() == b"PK\x06\x07":
        _, position, _ = _read(data, _LOCATOR64, locator, b"PK\x06\x07", "zip64 locator")
        *_, count, size, offset = _read(data, _END64, position, b"PK\x06\x06", "zip64 end record")
    return count, size, offset


def _read_zip64(name: str, extra: bytes, *values: int) -> tuple[int, ...]:
    """Returns `values`, with each 0xFFFFFFFF replaced by the next number of the zip64 field (4.5.3) in `extra`."""
    wide = [value == 0xFFFFFFFF for value in values]
    if not any(wide):
        return values
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1 and sum(wide) * 8 <= size and position + 4 + size <= len(extra):
            read = iter(struct.unpack_from(f"<{sum(wide)}Q", extra, position + 4))
            return tuple(next(read) if is_wide else value for value, is_wide in zip(values, wide, strict=True))
        position += 4 + size
    raise CheckpointError(f"the zip entry {name!r} lacks its 64-bit sizes; {_DAMAGED}")


def _start(data: NDArray[np.uint8], entry: _Entry) -> int:
    """Returns the offset of the entry's bytes, which follow its local header and the header's extra field."""
    *_, name_size, extra_size = _read(data, _LOCAL, entry.header, b"PK\x03\x04", f"header of {entry.name!r}")
    position = entry.header + _LOCAL.size
    start = position + name_size + extra_size
    end = start + entry.size
    if end > len(data):
        raise CheckpointError(f"the zip entry {entry.name!r} ends at byte {end} of {len(data)}; {_DAMAGED}")
    if _name(data[position : position + name_size]) != entry.name:
        raise CheckpointError(f"the zip entry {entry.name!r} has another name in its local header; {_DAMAGED}")
    return start


def _name(raw: NDArray[np.uint8]) -> str:
    try:
        return read_bytes(raw).tobytes().decode()
    except UnicodeDecodeError as exc:
        raise CheckpointError(f"a zip entry's name is not UTF-8 ({exc}); {_DAMAGED}") from exc
