"""The typed values of a GGUF header: numbers, bools, strings and arrays.

Reading never passes the end of the file, and no count in a damaged or hostile file makes puna allocate more memory than
the limits below allow. Sizes and types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
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
from puna.formats.mapped import read_bytes

_DTYPES = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_NUMBERS = {kind: np.dtype(code) for kind, code in _DTYPES.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9

MAX_NAMES, _MAX_STRINGS = 2**16, 2**21
"""Maximum number of keys or of tensors, and of strings in all arrays of a file together. The largest LLaMA has 1,138
tensors; Llama 3 has 408,403 tokens and merges. The size of the file alone does not bound the memory, since a Python
object needs far more memory than the value has bytes in the file."""

_MANY = 1000
"""In an array of up to this many strings, the lengths are read one by one, which is fast enough."""


class Metadata(Mapping[str, Any]):
    """The metadata of a file: a read-only mapping to numbers, bools, strings, arrays of numbers and lists of strings.

    An array of strings is decoded at its first access, since a vocabulary has 10^5 strings and many readers ignore
    it; that access raises `CheckpointError` if a string is not UTF-8.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, PackedStrings):
            try:
                value = self._values[key] = value.decode()
            except CheckpointError as exc:
                raise CheckpointError(f"{self._path}: metadata key {key!r}: {exc}") from exc
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def read_value(cursor: Cursor, kind: int) -> Any:
    """Reads a value of GGUF's type number `kind`; an array of strings as `PackedStrings`."""
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _array(cursor)
    return _numbers(cursor, kind, 1)[0].item()


def _array(cursor: Cursor) -> PackedStrings | NDArray[Any]:
    kind, count = cursor.number("<I"), cursor.number("<Q")
    if kind == _ARRAY:
        raise CheckpointError(
            f"an array of {count} arrays; puna reads arrays of numbers and of strings. No LLaMA model needs arrays "
            "of arrays: the file is damaged, or the key must be removed"
        )
    if kind != _STRING:
        return _numbers(cursor, kind, count)
    cursor.expect(count, 8, "strings", cursor.strings_left)
    cursor.strings_left -= count
    return cursor.strings(count)


def _numbers(cursor: Cursor, kind: int, count: int) -> NDArray[Any]:
    dtype = _NUMBERS.get(kind)
    if dtype is None:
        raise CheckpointError(
            f"value type {kind} is unknown; GGUF has types 0 to 12. The file is damaged, or newer than this puna"
        )
    cursor.expect(count, dtype.itemsize, "numbers", len(cursor.data))
    raw = cursor.take(count * dtype.itemsize)
    if kind == _BOOL and max(raw, default=0) > 1:
        raise CheckpointError("a bool that is neither 0 nor 1; the file is damaged, download it again")
    return np.frombuffer(raw, dtype)


_USUAL = 32
"""Bytes per string, its length included, that arrays of many strings rarely exceed: Llama 3's merges have 24."""

_HEAD = 4 * 2**20
"""Bytes of a file that are read first. A header with 128,256 tokens has 8 MB; smaller vocabularies need 2 MB."""


class Cursor:
    """Reads the header from start to end, never past the end of the file."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data = data
        self.position = 0
        self.strings_left = _MAX_STRINGS
        self._head = read_bytes(data[:_HEAD])

    def _view(self, end: int) -> memoryview:
        """Returns the first bytes of the file, at least `end` unless the file is shorter."""
        if end > len(self._head) < len(self.data):
            self._head = read_bytes(self.data[: max(end, 4 * len(self._head))])
        return self._head.data

    def expect(self, count: int, size: int, what: str, limit: int) -> None:
        """Raises CheckpointError if `count` items of at least `size` bytes exceed `limit` or the rest of the file."""
        left = len(self.data) - self.position
        if count > limit:
            raise CheckpointError(f"{count} {what} announced at byte {self.position}; the limit is {limit}")
        if count * size > left:
            raise CheckpointError(
                f"{count} {what} announced at byte {self.position}, but only {left} bytes follow; "
                "the file is truncated or damaged, download it again"
            )

    def take(self, size: int) -> memoryview:
        """Reads `size` bytes."""
        self.expect(size, 1, "bytes", sys.maxsize)
        self.position += size
        return self._view(self.position)[self.position - size : self.position]

    def number(self, code: str) -> int:
        """Reads a number; `code` is its format in `struct`."""
        value: int = struct.unpack(code, self.take(struct.calcsize(code)))[0]
        return value

    def string(self) -> str:
        """Reads a string and the eight-byte length before it."""
        try:
            return str(self.take(self.number("<Q")), "utf-8")
        except UnicodeDecodeError as exc:
            raise _not_text(exc) from exc

    def strings(self, count: int) -> PackedStrings:
        """Returns `count` strings, each with an eight-byte length before it, without decoding them."""
        while True:
            view = self._view(self.position + (_USUAL * count if count > _MANY else 1))[self.position :]
            ends = _fast_ends(np.frombuffer(view, np.uint8), count) if count > _MANY else None
            if ends is None:
                ends = self._ends(view, count)
            size = int(ends[-1]) if count else 0
            if size <= len(view) or len(self._head) == len(self.data):
                break
            self._view(len(self._head) + 1)
        if size > len(view):
            raise CheckpointError(f"{count} strings from byte {self.position} end past byte {len(self.data)} (EOF)")
        self.position += size
        return PackedStrings(view[:size], ends)

    @staticmethod
    def _ends(view: memoryview, count: int) -> NDArray[np.int64]:
        """Reads every length; returns each string's end. If a string is incomplete, the last end is past the view."""
        end, ends, unpack = 0, array("q"), struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                end += 8 + unpack(view, end)[0]
                ends.append(end)
        except (struct.error, OverflowError):
            ends.append(len(view) + 1)
        return np.frombuffer(ends, np.int64)


def _not_text(exc: UnicodeDecodeError) -> CheckpointError:
    return CheckpointError(f"a string is not UTF-8 ({exc}); the file is damaged, download it again")


@dataclass(frozen=True)
class PackedStrings:
    """An array of strings as stored, each with an eight-byte length before it, and the offset of each string's end."""

    raw: memoryview
    ends: NDArray[np.int64]

    def decode(self) -> list[str]:
        """Returns the strings."""
        try:
            return self._decode_together() or self._decode_one_by_one()
        except UnicodeDecodeError as exc:
            raise _not_text(exc) from exc

    def _decode_one_by_one(self) -> list[str]:
        raw, ends = bytes(self.raw), self.ends.tolist()
        return [raw[start + 8 : end].decode() for start, end in itertools.pairwise([0, *ends])]

    def _decode_together(self) -> list[str] | None:
        """Splits one text, in which a zero byte replaces each length; returns None if a string contains a zero byte."""
        data = np.frombuffer(self.raw, np.uint8)
        count = len(self.ends)
        if not count:
            return None
        starts = np.concatenate([[0], self.ends[:-1]])
        keep, buffer = np.ones(len(data), np.bool_), data.copy()
        buffer[starts] = 0
        for offset in range(1, 8):
            keep[starts + offset] = False
        separated = buffer[keep]
        if len(separated) - np.count_nonzero(separated) != count:
            return None
        text: str = separated[1:].tobytes().decode()
        return text.split("\0")


def _fast_ends(data: NDArray[np.uint8], count: int) -> NDArray[np.int64] | None:
    """Returns the end of each string, by searching for lengths (two bytes, then six zeros); None if that fails.

    If the second byte is zero, the byte before the length looks like one too: of consecutive bytes, the last is one.
    """
    for window in (count * _USUAL, count * 256):
        head = data[: min(window, len(data)) // 8 * 8]
        if len(head) < 16:
            return None
        numbers = np.lib.stride_tricks.as_strided(head.view("<u8"), (len(head) - 7,), (1,))  # unaligned, one per byte
        found = np.flatnonzero(numbers - 1 < 0xFFFF)
        if len(found) < count:
            continue
        starts = found[np.append(np.diff(found) > 1, True)][:count]
        if len(starts) == count:
            ends: NDArray[np.int64] = starts + 8 + numbers[starts].astype(np.int64)
            return ends if starts[0] == 0 and bool((ends[:-1] == starts[1:]).all()) else None
    return None
