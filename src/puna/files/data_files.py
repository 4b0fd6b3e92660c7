"""Names of data files: their formats, and the split (train, validation, test) that a name contains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

DATA_SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".txt": "text", ".md": "text",
}  # fmt: skip
"""The format of a data file by the ending of its name."""

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""Names of each split in names of files and folders."""


def data_format(name: str) -> str | None:
    """Returns the format of a data file by its name; None for an ending that is not in DATA_SUFFIXES."""
    return DATA_SUFFIXES.get(PurePosixPath(name).suffix.lower())


def split_of(name: str) -> str | None:
    """Returns the split that the path of a file contains as a word, such as train in data/train-00000.csv; or None."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in _SPLITS.items() if any(word in names for word in words)), None)


def choose_data_files(names: Iterable[str], split: str) -> list[str]:
    """Returns the data files of a split, sorted; an empty list if there are none.

    If no name contains a split, all files are those of "train" and of "validation". JSON, CSV and Parquet files exclude
    text files, because a README next to them is not data. Hidden files are left out.
    """
    visible = (name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts))
    files = sorted(name for name in visible if data_format(name))
    tables = [name for name in files if data_format(name) != "text" and PurePosixPath(name).name not in _NOT_DATA]
    files = tables or [name for name in files if data_format(name) == "text" and not _is_readme(name)]
    splits = {name: split_of(name) for name in files}
    if split in ("train", "validation") and not any(splits.values()):
        return files
    return [name for name in files if splits[name] == split]


_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""Descriptions that the library `datasets` writes next to data."""


def _is_readme(name: str) -> bool:
    return PurePosixPath(name).stem.lower() in ("readme", "license", "changelog")
