"""Rows in memory: a list of dictionaries or texts, a `datasets.Dataset`, a pandas `DataFrame`, or similar objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import DataError, show
from puna.training.batch import Source
from puna.training.data.readers.rows import Row, Rows


class MemoryRows(Rows):
    """The items of an object with `len(items)` and `items[index]`; those of a DataFrame by `items.iloc[index]`."""

    def __init__(self, items: Any, name: str = "the data") -> None:
        self._count, self._name = len(items), name
        self._items = getattr(items, "iloc", items)

    def __len__(self) -> int:
        return self._count

    def source(self, index: int) -> Source:
        """Returns the number of a row."""
        return Source(self._name, index + 1, "row")

    def read(self, index: int) -> Row:
        """Returns a row; raises DataError."""
        item, source = self._items[index], self.source(index)
        if isinstance(item, str):
            return Row({"text": item, "begins": True, "ends": True}, source)
        if not isinstance(item, Mapping) and hasattr(item, "to_dict"):
            item = item.to_dict()
        if not isinstance(item, Mapping) or not all(isinstance(name, str) for name in item):
            raise DataError(
                f"{source}: the row is {show(item)}; it must be a dictionary of columns such as "
                "{'prompt': '...', 'completion': '...'}, or a text"
            )
        return Row(dict(item), source)
