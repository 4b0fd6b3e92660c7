"""Rows of Parquet files, read with DuckDB (the extra `parquet`), a block of rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from puna.errors import DataError, MissingExtraError, first_line
from puna.training.batch import Source
from puna.training.data.readers.data_file import DataFile
from puna.training.data.readers.rows import Row, Rows

_MARK = b"PAR1"

_BLOCK = 1024
"""Rows that are read at a time; training reads all rows in order, once."""


class ParquetFile(Rows):
    """The rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        file = DataFile(path)
        if file.read(0, 4) != _MARK or file.read(max(file.size - 4, 4), file.size) != _MARK:
            raise DataError(
                f"{path}: not a complete Parquet file, which begins and ends with {_MARK.decode()}; download or "
                "write it again, or rename it if it has another format"
            )
        try:
            import duckdb
        except ImportError as exc:
            raise MissingExtraError(f"{path}: Parquet files need DuckDB; pip install 'puna[parquet]'") from exc
        self._path, self._error = path, duckdb.Error
        self._database = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
        self._block, self._first = [], -1  # type: list[dict[str, Any]], int
        ((count,),) = self._query("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchall()
        self._count = int(count)

    def __len__(self) -> int:
        return self._count

    def source(self, index: int) -> Source:
        """Returns the file and the number of a row."""
        return Source(str(self._path), index + 1, "row")

    def read(self, index: int) -> Row:
        """Returns a row; raises DataError."""
        first = index - index % _BLOCK
        if first != self._first:
            self._block, self._first = self._read_block(first), first
        return Row(dict(self._block[index - first]), self.source(index))

    def _read_block(self, first: int) -> list[dict[str, Any]]:
        result = self._query(
            "SELECT * FROM read_parquet(?, file_row_number = true) WHERE file_row_number >= ? AND file_row_number < ? "
            "ORDER BY file_row_number",
            [str(self._path), first, first + _BLOCK],
        )
        names = [column[0] for column in result.description]
        return [
            {name: value for name, value in zip(names, values, strict=True) if name != "file_row_number"}
            for values in result.fetchall()
        ]

    def _query(self, text: str, values: list[Any]) -> Any:
        try:
            return self._database.execute(text, values)
        except self._error as exc:
            raise DataError(
                f"{self._path}: not a valid Parquet file ({first_line(exc)}); download or write it again"
            ) from exc
