"""`Rows`: the interface of all readers. A row is a dictionary of columns, and knows where it was read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.training.batch import Source

ROW_LIMIT = 16 * 2**20
"""Maximum size of a row in bytes: 4 million tokens. A larger row is a file of another format, or lacks line ends."""


@dataclass(frozen=True)
class Row:
    """The values of a row by column, and where it was read."""

    values: dict[str, Any]
    source: Source


class Rows(ABC):
    """Rows that are read one at a time, in any order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Row:
        """Returns a row, counted from 0.

        Raises:
            DataError: the row is malformed; the message names the file, the line and the remedy.
        """

    @abstractmethod
    def source(self, index: int) -> Source:
        """Returns where a row is, without reading it."""


class JoinedRows(Rows):
    """The rows of several files, one file after another."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> Row:
        """Returns a row; raises DataError."""
        part, offset = self._find(index)
        return part.read(offset)

    def source(self, index: int) -> Source:
        """Returns where a row is."""
        part, offset = self._find(index)
        return part.source(offset)

    def _find(self, index: int) -> tuple[Rows, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number], index - (int(self._ends[number - 1]) if number else 0)
