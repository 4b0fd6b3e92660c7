"""GGUF, versions 2 and 3, little-endian: typed metadata, then tensor descriptions, then aligned tensor data.

Gives plain Python values and views of the mapped file; what the metadata mean is the affair of `checkpoint/` and
`tokenizer/`. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, StoredTensor
from puna.formats.mapped import map_file

_BY_ID = {item.ggml_id: item for item in FORMATS.values()}

_UNREAD = {
    9: "q8_1", 15: "q8_K", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s", 22: "iq2_s",
    23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0",
    39: "mxfp4", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip
"""ggml's other types, known by name only."""

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_NUMBERS = {kind: np.dtype(spelling) for kind, spelling in _SCALARS.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9

_MANY = 1000
"""Strings in a row that are worth looking at all at once."""

_MAX_NAMES, _MAX_STRINGS = 2**16, 2**21
"""Most keys or tensors, and most strings in all arrays of a file together. The largest LLaMA has 1,138 tensors, Llama 3
has 408,403 tokens and merges. A Python object costs far more memory than its bytes in the file, whose size alone must
not bound them."""
_MAX_DIMS = 4
"""GGML_MAX_DIMS."""


@dataclass(frozen=True)
class GgufFile:
    """An open file.

    Attributes:
        tensors: in the order of the file; shapes outermost axis first (the file has them innermost first).
    """

    path: Path
    version: int
    metadata: Metadata
    tensors: dict[str, StoredTensor]


def open_gguf(path: Path) -> GgufFile:
    """Opens `path`; costs the metadata only.

    Raises:
        CheckpointError: the file is not GGUF 2 or 3, is cut short, or contradicts itself.
    """
    cursor = _Cursor(map_file(path))
    try:
        version = _version(cursor)
        tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
        cursor.expect(tensor_count, 24, "tensors", _MAX_NAMES)  # an unnamed tensor takes 24 bytes, an unnamed bool 13
        cursor.expect(key_count, 13, "metadata keys", _MAX_NAMES)
        metadata = _metadata(cursor, key_count)
        tensors = _tensors(cursor, tensor_count, _alignment(metadata))
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return GgufFile(path, version, Metadata(path, metadata), tensors)


def _not_text(exc: UnicodeDecodeError) -> CheckpointError:
    return CheckpointError(f"a string is not UTF-8 ({exc}); the file is damaged, download it again")


@dataclass(frozen=True)
class _Strings:
    """Consecutive strings, each behind a length of eight bytes. Vocabularies have 10^5, and few readers want them."""

    raw: memoryview
    ends: NDArray[np.int64]

    def decode(self) -> list[str]:
        try:
            return self._all_at_once() or self._one_by_one()
        except UnicodeDecodeError as exc:
            raise _not_text(exc) from exc

    def _one_by_one(self) -> list[str]:
        raw, ends = bytes(self.raw), self.ends.tolist()
        return [raw[end + 8 : after].decode() for end, after in itertools.pairwise([0, *ends])]

    def _all_at_once(self) -> list[str] | None:
        """Each length becomes a zero byte, at which the text is split; None where the strings hold zeros themselves."""
        data = np.frombuffer(self.raw, np.uint8)
        count = len(self.ends)
        if not count or len(data) - np.count_nonzero(data) != 7 * count:  # lengths below 256 have seven each
            return None
        starts = np.concatenate([[0], self.ends[:-1]])
        kept, marked = np.ones(len(data), np.bool_), data.copy()
        marked[starts] = 0
        for offset in range(1, 8):
            kept[starts + offset] = False
        text: str = marked[kept][1:].tobytes().decode()
        return text.split("\0")


def _ends_at_once(data: NDArray[np.uint8], count: int) -> NDArray[np.int64] | None:
    """Where each of `count` strings ends, found by what their lengths look like; None where that is not so simple."""
    for window in (count * 32, count * 256):
        some = data[: min(window, len(data)) // 8 * 8]
        if len(some) < 16:
            return None
        # The number of eight bytes that begins at each byte: of 1 to 255, it is a length.
        numbers = np.lib.stride_tricks.as_strided(some.view("<u8"), (len(some) - 7,), (1,))
        starts = np.flatnonzero(numbers - 1 < 255)[:count]
        if len(starts) == count:
            ends: NDArray[np.int64] = starts + 8 + data[starts]
            return ends if starts[0] == 0 and bool((ends[:-1] == starts[1:]).all()) else None
    return None


class Metadata(Mapping[str, Any]):
    """The metadata, read-only: numbers, bools and strings; arrays of numbers as numpy arrays, others as lists.

    Arrays of strings are decoded when first asked for, and raise `CheckpointError` then if they are not UTF-8.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Strings):
            try:
                value = self._values[key] = value.decode()
            except CheckpointError as exc:
                raise CheckpointError(f"{self._path}: metadata key {key!r}: {exc}") from exc
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _Cursor:
    """Reads the header from front to back, never past the end of the file."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.view = data.data
        self.at = 0
        self.strings_left = _MAX_STRINGS

    def expect(self, count: int, size: int, what: str, limit: int) -> None:
        """Refuses a count whose items, `size` bytes or more each, cannot fit in the rest of the file."""
        left = len(self.data) - self.at
        if count > limit:
            raise CheckpointError(f"{count} {what} announced at byte {self.at}; the limit is {limit}")
        if count * size > left:
            raise CheckpointError(
                f"{count} {what} announced at byte {self.at}, but only {left} bytes follow; "
                "the file is truncated or damaged, download it again"
            )

    def take(self, size: int) -> memoryview:
        self.expect(size, 1, "bytes", sys.maxsize)
        self.at += size
        return self.view[self.at - size : self.at]

    def number(self, spelling: str) -> int:
        value: int = struct.unpack(spelling, self.take(struct.calcsize(spelling)))[0]
        return value

    def string(self) -> str:
        try:
            return str(self.take(self.number("<Q")), "utf-8")
        except UnicodeDecodeError as exc:
            raise _not_text(exc) from exc

    def strings(self, count: int) -> _Strings:
        """Skips `count` strings in a row, each a length of eight bytes and UTF-8, noting where they end."""
        view = self.view[self.at :]
        ends = _ends_at_once(self.data[self.at :], count) if count > _MANY else None
        if ends is None:
            ends = self._ends(view, count)
        at = int(ends[-1]) if count else 0
        if at > len(view):
            raise CheckpointError(
                f"{count} strings from byte {self.at} end past byte {len(self.data)}, the file's last"
            )
        self.at += at
        return _Strings(view[:at], ends)

    @staticmethod
    def _ends(view: memoryview, count: int) -> NDArray[np.int64]:
        """One after the other; the last end is beyond the view where one of them is."""
        at, ends, unpack = 0, array("q"), struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + unpack(view, at)[0]
                ends.append(at)
        except (struct.error, OverflowError):
            ends.append(len(view) + 1)
        return np.frombuffer(ends, np.int64)


def _version(cursor: _Cursor) -> int:
    magic = bytes(cursor.take(4))
    if magic != b"GGUF":
        raise CheckpointError(f"begins with {magic!r}, not with GGUF: this is another kind of file")
    version = cursor.number("<I")
    if version & 0xFFFF == 0 and version:
        raise CheckpointError("a big-endian GGUF file; puna reads little-endian ones, download or convert to that form")
    if version not in (2, 3):
        raise CheckpointError(f"GGUF version {version}; puna reads 2 and 3, convert the file with a current llama.cpp")
    return version


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            raise CheckpointError(f"the metadata key {key!r} appears twice; the file is damaged, download it again")
        try:
            metadata[key] = _value(cursor, cursor.number("<I"))
        except CheckpointError as exc:
            raise CheckpointError(f"metadata key {key!r}: {exc}") from exc
    return metadata


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _array(cursor)
    return _numbers(cursor, kind, 1)[0].item()


def _array(cursor: _Cursor) -> _Strings | NDArray[Any]:
    kind, count = cursor.number("<I"), cursor.number("<Q")
    if kind == _ARRAY:
        raise CheckpointError(
            f"an array of {count} arrays; puna reads arrays of numbers and of strings. No LLaMA needs others: "
            "the file is damaged, or the key has to be taken out"
        )
    if kind != _STRING:
        return _numbers(cursor, kind, count)
    cursor.expect(count, 8, "strings", cursor.strings_left)
    cursor.strings_left -= count
    return cursor.strings(count)


def _numbers(cursor: _Cursor, kind: int, count: int) -> NDArray[Any]:
    dtype = _NUMBERS.get(kind)
    if dtype is None:
        raise CheckpointError(
            f"value type {kind} is unknown; GGUF has 0 to 12. The file is damaged, or newer than puna"
        )
    cursor.expect(count, dtype.itemsize, "numbers", len(cursor.data))
    raw = cursor.take(count * dtype.itemsize)
    if kind == _BOOL and max(raw, default=0) > 1:
        raise CheckpointError("a bool that is neither 0 nor 1; the file is damaged, download it again")
    return np.frombuffer(raw, dtype)


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


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, StoredTensor]:
    described = [_describe(cursor, alignment) for _ in range(count)]
    data = cursor.data[-(-cursor.at // alignment) * alignment :]
    tensors: dict[str, StoredTensor] = {}
    for item in described:
        if item.name in tensors:
            raise CheckpointError(f"the tensor {item.name!r} appears twice; the file is damaged, download it again")
        tensors[item.name] = _view(item, data)
    spans = sorted((item.offset, item.offset + tensors[item.name].raw.size, item.name) for item in described)
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if start < end:
            raise CheckpointError(f"tensors {first!r} and {second!r} overlap; the file is damaged, download it again")
    return tensors


def _describe(cursor: _Cursor, alignment: int) -> _Description:
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
        spelled = _UNREAD.get(item.kind, "unknown")
        raise CheckpointError(
            f"tensor {item.name!r} is stored as ggml type {item.kind} ({spelled}); puna reads {', '.join(FORMATS)}. "
            "Use a file quantised to one of these"
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
