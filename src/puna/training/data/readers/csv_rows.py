"""Rows of CSV files: comma, semicolon, tab or bar; quoted fields may contain line ends. The first row has the names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from puna.errors import DataError, show, show_count
from puna.files import reading_errors
from puna.training.batch import Source
from puna.training.data.readers.data_file import DataFile
from puna.training.data.readers.rows import ROW_LIMIT, Row, Rows

_DELIMITERS = ",;\t|"


class CsvFile(Rows):
    """The rows of a CSV file, by their byte offsets."""

    def __init__(self, path: Path) -> None:
        self._file = DataFile(path)
        self._delimiter = self._find_delimiter()
        starts, lines = self._scan()
        self._starts, self._line_numbers = np.array(starts, np.int64), np.array(lines, np.int64)
        self._names: list[str] = []
        if len(starts):
            self._names = self._check_names(self._record(0))

    def __len__(self) -> int:
        return max(len(self._starts) - 1, 0)

    def source(self, index: int) -> Source:
        """Returns the file and the first line of a row."""
        return Source(str(self._file.path), int(self._line_numbers[index + 1]))

    def read(self, index: int) -> Row:
        """Returns a row, all values of which are texts; raises DataError."""
        record, source = self._record(index + 1), self.source(index)
        if len(record) != len(self._names):
            fields, columns = show_count(len(record), "field"), show_count(len(self._names), "column")
            raise DataError(
                f"{source}: the row has {fields}, but the first row names {columns} "
                f"({', '.join(map(show, self._names))}); quote fields that contain {show(self._delimiter)}"
            )
        return Row(dict(zip(self._names, record, strict=True)), source)

    def _record(self, number: int) -> list[str]:
        """Returns the fields of a record; number 0 is the header."""
        source = Source(str(self._file.path), int(self._line_numbers[number]))
        start = int(self._starts[number])
        stop = int(self._starts[number + 1]) if number + 1 < len(self._starts) else self._file.size
        text = self._file.read_row(start, stop, source, "Is a quote not closed? Close it, or split the row")
        try:
            return next(csv.reader(io.StringIO(text, newline="\n"), delimiter=self._delimiter, strict=True))
        except csv.Error as exc:
            raise DataError(
                f"{source}: not valid CSV ({exc}); close every quote, write a quote inside a quoted field twice, and "
                "use \\n or \\r\\n between rows; for texts of more than 131,072 characters use JSONL"
            ) from exc

    def _scan(self) -> tuple[list[int], list[int]]:
        """Returns the offset and the number of the first line of each record that is not blank."""
        with reading_errors(DataError), self._file.path.open("rb") as file:
            return self._scan_lines(_Lines(file, self._file.start))

    def _scan_lines(self, lines: _Lines) -> tuple[list[int], list[int]]:
        starts: list[int] = []
        numbers: list[int] = []
        records = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            start, number = lines.position, lines.number + 1
            try:
                record = next(records)
            except StopIteration:
                return starts, numbers
            except csv.Error:  # `_record` explains the error when the row is read
                record = ["malformed"]
            if any(field.strip() for field in record):
                starts.append(start)
                numbers.append(number)

    def _find_delimiter(self) -> str:
        """Returns the delimiter that splits the first line into the most fields."""
        start = self._file.read(self._file.start, self._file.start + 2**16).decode(errors="replace")
        line = start.splitlines()[0]
        counts = {delimiter: len(next(csv.reader([line], delimiter=delimiter), [])) for delimiter in _DELIMITERS}
        return max(_DELIMITERS, key=lambda delimiter: counts[delimiter])

    def _check_names(self, header: list[str]) -> list[str]:
        names = [name.strip() or f"column {index + 1}" for index, name in enumerate(header)]
        if double := next((name for name in names if names.count(name) > 1), None):
            source = Source(str(self._file.path), int(self._line_numbers[0]))
            raise DataError(f"{source}: two columns are named {show(double)}; give each column a different name")
        return names


class _Lines:
    """The lines of a file for `csv.reader`, which takes exactly the lines of a record.

    Attributes:
        position: offset of the next line.
        number: lines that were read.
    """

    def __init__(self, file: IO[bytes], start: int) -> None:
        file.seek(start)
        self._file, self.position, self.number = file, start, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(ROW_LIMIT)
        if not line:
            raise StopIteration
        self.position += len(line)
        self.number += 1
        return line.decode(errors="surrogateescape")
