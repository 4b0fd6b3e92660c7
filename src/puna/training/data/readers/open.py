"""`open_rows`: opens files, folders, hub data sets or objects in memory as rows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.errors import ArgumentError, DataError, ModelNotFoundError, show, show_path
from puna.files import has_file, reading_errors
from puna.files.data_files import DATA_SUFFIXES, choose_data_files, data_format
from puna.hub import data_set_files, parse
from puna.training.data.readers.csv_rows import CsvFile
from puna.training.data.readers.data_file import BOM
from puna.training.data.readers.json_rows import JsonFile, JsonLines
from puna.training.data.readers.memory_rows import MemoryRows
from puna.training.data.readers.parquet_rows import ParquetFile
from puna.training.data.readers.rows import JoinedRows, Rows
from puna.training.data.readers.text_rows import TextFile

READERS: dict[str, Callable[[Path], Rows]] = {
    "jsonl": JsonLines,
    "json": JsonFile,
    "csv": CsvFile,
    "parquet": ParquetFile,
    "text": TextFile,
}
"""The reader of each format of files. A new format is a file in this folder and a row here and in DATA_SUFFIXES."""

_SIGNATURES = {
    b"\x1f\x8b": "gzip; decompress it with gunzip",
    b"PK\x03\x04": "a zip archive or a spreadsheet; decompress it, or export it as CSV",
    b"BZh": "bzip2; decompress it with bunzip2",
    b"\xfd7zXZ": "xz; decompress it with unxz",
    b"\x28\xb5\x2f\xfd": "zstd; decompress it with unzstd",
    b"\xff\xfe\0\0": "UTF-32; convert it with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
    b"ARROW1": "an Arrow file; open it with datasets.load_from_disk and pass the result, or export JSONL",
    b"\xd0\xcf\x11\xe0": "a spreadsheet; export it as CSV",
    b"%PDF": "a PDF document; extract its text",
    b"version https://git-lfs": "a pointer of Git LFS; download the file itself (git lfs pull)",
}  # fmt: skip
"""First bytes of files of other kinds, and what to do with them."""

_EXAMPLE = (
    "give a JSONL, JSON, CSV, Parquet or text file, a folder of such files, or owner/name of a data set on the hub"
)


def open_rows(data: Any, split: str = "train") -> Rows:
    """Opens training data.

    Args:
        data: a path of a file or folder, `owner/name` of a data set on the hub (downloaded once into the hub's cache),
            several of these (a str that names nothing makes all of them texts, a Path is an error), or rows in memory:
            a sequence of dictionaries or texts, a `datasets.Dataset`, a mapping of splits to one of these
            (`datasets.DatasetDict`), a pandas `DataFrame`.
        split: chooses the files of a folder or hub data set by their names, and the part of a mapping.

    Raises:
        DataError: a file is empty, damaged, or of another kind; or there are no rows.
        ModelNotFoundError: there is no such file.
        MissingExtraError: a Parquet file needs the extra `parquet`.
    """
    if isinstance(data, str) and not data:
        raise ArgumentError(f"the training data is an empty text; {_EXAMPLE}, or a list of rows")
    if isinstance(data, Mapping) and not hasattr(data, "iloc"):
        return open_rows(_split_of_mapping(data, split), split)
    if _is_path(data):
        rows: list[Rows] = [_open_file(path) for path in _files(data, split)]
    elif isinstance(data, Sequence) and are_paths(data):
        rows = [_open_file(path) for item in data for path in _files(item, split)]
    elif hasattr(data, "__len__") and (hasattr(data, "__getitem__") or hasattr(data, "iloc")):
        rows = [MemoryRows(data)]
    else:
        kind = type(data).__name__
        iterable = "; read it into a list first" if isinstance(data, Iterable) else ""
        raise ArgumentError(f"the training data is {show(data)}, a {kind}{iterable}; {_EXAMPLE}, or a list of rows")
    if not sum(map(len, rows)):
        raise DataError(f"{show(data)}: there are no rows; add at least one")
    return rows[0] if len(rows) == 1 else JoinedRows(rows)


def _is_path(item: object) -> bool:
    return isinstance(item, str | os.PathLike)


def are_paths(items: Sequence[Any]) -> bool:
    """Returns whether a list has paths, rather than rows or texts."""
    return bool(items) and all(_is_path(item) and _names_data(item) for item in items)


def _names_data(item: Any) -> bool:
    """Whether an item of a list is a path: a Path always is, a str may also be a text that is learned."""
    try:
        return (
            isinstance(item, os.PathLike)
            or Path(item).exists()
            or data_format(str(item)) is not None
            or parse(item) is not None
        )
    except (OSError, ValueError):  # a text that is too long for a path, or contains a zero
        return False


def _split_of_mapping(data: Mapping[Any, Any], split: str) -> Any:
    if split not in data:
        names = ", ".join(map(show, data)) or "empty"
        raise DataError(
            f"the data is a mapping without {show(split)}; its keys are {names}. Choose a split, or give a list of rows"
        )
    return data[split]


def _files(path: Any, split: str) -> list[Path]:
    """Returns the data files of a path or of a hub data set."""
    with reading_errors(DataError):
        if not Path(path).exists():
            if (reference := parse(path)) is None or data_format(str(path)):
                raise ModelNotFoundError(f"{show_path(path)}: no such file or folder; {_EXAMPLE}")
            return data_set_files(reference, split)
        folder = Path(path)
        if not folder.is_dir():
            return [folder]
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if files := choose_data_files(names, split):
        return [folder / name for name in files]
    others = f"it has {len(names)} other files, such as {show(sorted(names)[0])}" if names else "it is empty"
    raise DataError(
        f"{folder}: the folder has no data files of the split {show(split)} ({others}); names of data files end in "
        f"{', '.join(DATA_SUFFIXES)}"
    )


def _open_file(path: Path) -> Rows:
    with reading_errors(DataError):
        has_file(path, DataError)
        with path.open("rb") as file:
            start = file.read(2**16)
    if not start.removeprefix(BOM).strip():
        raise DataError(f"{path}: the file is empty; {_EXAMPLE}")
    for signature, kind in _SIGNATURES.items():
        if start.startswith(signature):
            raise DataError(f"{path}: the file is {kind}")
    reader = READERS[_format(path, start)]
    rows = reader(path)
    if not len(rows):
        raise DataError(f"{path}: the file has no rows (the first row of a CSV file names the columns); add rows")
    return rows


def _format(path: Path, start: bytes) -> str:
    """Returns the format of a file: by its content, or where that is ambiguous by its name."""
    named = data_format(path.name)
    text = start.removeprefix(BOM).lstrip()
    if start.startswith(b"PAR1"):
        return "parquet"
    if named != "text":
        first, _, rest = text.partition(b"\n")
        if text.startswith(b"{") and _is_json(first):
            return "jsonl" if rest.strip() or named != "json" else "json"
        if text.startswith((b"[", b"{")) and named in ("jsonl", "json", None):
            return "jsonl" if named == "jsonl" and text.startswith(b"{") else "json"
    if named is None:
        raise DataError(
            f"{path}: the format of the file is not known; rename it so that its name ends in one of "
            f"{', '.join(DATA_SUFFIXES)}"
        )
    return "jsonl" if named == "json" else named


def _is_json(line: bytes) -> bool:
    """Whether a line is one complete JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
