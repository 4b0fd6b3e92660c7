"""The lines of a text file by their byte offsets: 8 bytes of memory per line, whatever its length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from puna.training.batch import Source
from puna.training.data.readers.data_file import DataFile

_BLOCK = 2**18
"""Bytes that are scanned at a time."""

_IS_INK = np.ones(256, bool)
_IS_INK[list(b" \t\r\n")] = False


class LineFile:
    """The lines of a file that are not blank.

    Attributes:
        starts: (lines,) the byte offset of each line.
        numbers: (lines,) the number of each line, from 1; None if no line precedes them that is blank.
    """

    def __init__(self, path: Path) -> None:
        self._file = DataFile(path)
        starts, numbers = self._scan()
        self.starts = starts
        self.numbers = None if len(numbers) == 0 or numbers[-1] == len(numbers) else numbers

    def __len__(self) -> int:
        return len(self.starts)

    def source(self, index: int) -> Source:
        """Returns where a line is."""
        return Source(str(self._file.path), index + 1 if self.numbers is None else int(self.numbers[index]))

    def read(self, index: int, count: int = 1) -> str:
        """Returns a line, or several, with the blank lines after them.

        Raises:
            DataError: the line has too many bytes, or is not UTF-8 text.
        """
        start = int(self.starts[index])
        stop = int(self.starts[index + count]) if index + count < len(self.starts) else self._file.size
        hint = "Split it into several rows, or check the format of the file"
        return self._file.read_row(start, stop, self.source(index), hint)

    def _scan(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the offsets and numbers of the lines that are not blank."""
        starts, numbers = [], []
        line_count = ink = 0
        position = line_start = self._file.start
        while block := self._file.read(position, position + _BLOCK):
            data = np.frombuffer(block, np.uint8)
            ends = np.flatnonzero(data == 10) + 1
            counts = np.cumsum(_IS_INK[data], dtype=np.int32)
            if len(ends):
                in_line = np.diff(counts[ends - 1], prepend=-ink)
                begins = np.concatenate([[line_start], position + ends[:-1]])
                starts.append(begins[in_line > 0])
                numbers.append(line_count + 1 + np.flatnonzero(in_line > 0))
                ink = int(counts[-1] - counts[ends[-1] - 1])
                line_start, line_count = position + int(ends[-1]), line_count + len(ends)
            else:
                ink += int(counts[-1])
            position += len(data)
        if ink:
            starts.append(np.array([line_start]))
            numbers.append(np.array([line_count + 1]))
        empty = [np.zeros(0, np.int64)]
        return np.concatenate(starts or empty), np.concatenate(numbers or empty)
