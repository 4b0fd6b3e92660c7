"""Rows of JSONL files (one object per line) and of JSON files (a list of objects, or one object)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from puna.errors import DataError, first_line, show
from puna.files import read_file
from puna.training.batch import Source
from puna.training.data.readers.data_file import BOM, decode
from puna.training.data.readers.lines import LineFile
from puna.training.data.readers.rows import ROW_LIMIT, Row, Rows

_JSON_LIMIT = 2**29
"""Maximum size of a JSON file in bytes; it is read into memory."""

_LISTS = ("data", "rows", "examples", "train", "instances")
"""Keys of an object that contains the list of rows."""

Value = TypeVar("Value")


class JsonLines(Rows):
    """The rows of a JSONL file, which may be larger than the memory."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)

    def __len__(self) -> int:
        return len(self._lines)

    def source(self, index: int) -> Source:
        """Returns the file and line of a row."""
        return self._lines.source(index)

    def read(self, index: int) -> Row:
        """Returns a row; raises DataError."""
        source = self.source(index)
        text = self._lines.read(index).strip()
        is_cut = index == len(self) - 1 and text.startswith("{") and not text.endswith("}")
        hint = "; the last line of the file seems to be incomplete" if is_cut else ""
        values = _parsed(lambda: _DECODER.decode(text), source, f"each line must be one complete JSON object{hint}")
        return Row(as_object(values, source), source)


class JsonFile(Rows):
    """The rows of a JSON file, which is read into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        start = Source(str(path), 1)
        self._text = decode(read_file(path, DataError, _JSON_LIMIT).removeprefix(BOM), start)
        self._rows: list[tuple[int, int]] = []
        self._list: list[Any] | None = None
        self._find_rows(start)

    def __len__(self) -> int:
        return len(self._rows if self._list is None else self._list)

    def source(self, index: int) -> Source:
        """Returns the file and the first line of a row; for a list inside an object, the number of the row."""
        if self._list is not None:
            return Source(str(self._path), index + 1, "row")
        return Source(str(self._path), self._rows[index][1])

    def read(self, index: int) -> Row:
        """Returns a row; raises DataError."""
        source = self.source(index)
        if self._list is not None:
            return Row(as_object(self._list[index], source), source)
        position = self._rows[index][0]
        value, stop = self._decode(position, source)
        if stop - position > ROW_LIMIT:
            raise DataError(f"{source}: the row has {stop - position} characters; the limit is {ROW_LIMIT}. Split it")
        return Row(as_object(value, source), source)

    def _find_rows(self, start: Source) -> None:
        """Finds the position and line of each element of the list of rows."""
        position = self._skip_space(0)
        if self._text[position : position + 1] == "{":
            value, stop = self._decode(position, start)
            self._check_end(stop)
            name = next((name for name in _LISTS if isinstance(value.get(name), list)), None)
            if name is None:
                self._rows = [(position, 1 + self._text.count("\n", 0, position))]
                return
            self._list = value[name]
            return
        self._find_elements(position)

    def _find_elements(self, position: int) -> None:
        line, counted, position = 1, 0, position + 1
        while (position := self._skip_space(position)) < len(self._text) and self._text[position] != "]":
            line += self._text.count("\n", counted, position)
            counted, source = position, Source(str(self._path), line)
            self._rows.append((position, line))
            _, position = self._decode(position, source)
            position = self._skip_space(position)
            if self._text[position : position + 1] == ",":
                position += 1
            elif self._text[position : position + 1] != "]":
                raise DataError(f"{source}: a comma or ] is missing after this row; {_COMPLETE}")
        if position >= len(self._text):
            raise DataError(f"{Source(str(self._path), line)}: the list of rows does not end; {_COMPLETE}")

    def _decode(self, position: int, source: Source) -> tuple[Any, int]:
        return _parsed(lambda: _DECODER.raw_decode(self._text, position), source, _COMPLETE)

    def _check_end(self, stop: int) -> None:
        if self._skip_space(stop) < len(self._text):
            source = Source(str(self._path), 1 + self._text.count("\n", 0, stop))
            raise DataError(f"{source}: text follows the JSON object; rename a file with one object per line to .jsonl")

    def _skip_space(self, position: int) -> int:
        while position < len(self._text) and self._text[position] in " \t\r\n":
            position += 1
        return position


_COMPLETE = "the file must be one complete JSON list of objects; write it again, or use JSONL"


def as_object(value: object, source: Source) -> dict[str, Any]:
    """Returns the columns of a row; raises DataError if it is not an object."""
    if not isinstance(value, dict):
        raise DataError(
            f"{source}: the row is {show(value)}, a {type(value).__name__}; it must be an object such as "
            '{"prompt": "...", "completion": "..."}'
        )
    return value


def _parsed(parse: Callable[[], Value], source: Source, remedy: str) -> Value:
    """Returns the result of a call of the decoder, whose errors become DataErrors."""
    try:
        return parse()
    except json.JSONDecodeError as exc:
        place = Source(source.file, exc.lineno) if exc.lineno > 1 else source
        raise DataError(f"{place}: not valid JSON ({exc.msg}, character {exc.colno}); {remedy}") from exc
    except RecursionError as exc:
        raise DataError(f"{source}: the JSON values are nested too deeply; {remedy}") from exc
    except ValueError as exc:  # a constant or key that `_DECODER` refuses, or a number of thousands of digits
        raise DataError(f"{source}: not valid JSON ({first_line(exc)}); {remedy}") from exc


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value; write null or a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {show(double)} occurs twice in an object")
    return values


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
