"""Rows of plain text files: {"text": ...}, each a part of the file that ends at a line end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from puna.training.batch import Source
from puna.training.data.readers.lines import LineFile
from puna.training.data.readers.rows import Row, Rows

_PART = 2**16
"""Bytes of a part at least: some 15,000 tokens. It limits memory; documents are split into windows later."""


class TextFile(Rows):
    """One text in parts. The columns "begins" and "ends" are whether a part is the first or last of the file."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)
        offsets = self._lines.starts // _PART
        changes = np.flatnonzero(np.diff(offsets)) + 1
        self._first_lines = np.concatenate([[0], changes]) if len(offsets) else changes

    def __len__(self) -> int:
        return len(self._first_lines)

    def source(self, index: int) -> Source:
        """Returns the file and the first line of a part."""
        return self._lines.source(int(self._first_lines[index]))

    def read(self, index: int) -> Row:
        """Returns a part; raises DataError."""
        first = int(self._first_lines[index])
        is_last = index == len(self) - 1
        stop = len(self._lines) if is_last else int(self._first_lines[index + 1])
        values = {"text": self._lines.read(first, stop - first), "begins": index == 0, "ends": is_last}
        return Row(values, self.source(index))
