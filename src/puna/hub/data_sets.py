"""Data sets of the hub: downloads the files of one split into the hub's cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from puna.files.data_files import choose_data_files
from puna.hub.download import fetch
from puna.hub.reference import Reference


def data_set_files(reference: Reference, split: str) -> list[Path]:
    """Returns the paths of the data files of a split, downloaded first if they are not in the cache.

    Args:
        reference: `part` chooses the files whose path contains it.

    Raises:
        ModelNotFoundError: the hub has no such data set or split, or cannot be reached.
        StorageError: there is not enough space for the download.
    """
    folder = fetch(replace(reference, kind="dataset"), "data", split=split)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [folder / name for name in choose_data_files((n for n in names if (reference.part or "") in n), split)]
