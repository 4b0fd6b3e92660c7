"""The models in the hub's cache: their names, sizes and formats; deletion. Never uses the network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ModelNotFoundError, show
from puna.files import storage_errors
from puna.hub.reference import Reference, cache_name, cached_model

_FORMATS = {".gguf": "GGUF", ".safetensors": "safetensors", ".bin": "PyTorch", ".pth": "Meta"}
_QUANTISATION = re.compile(r"(?<![A-Z0-9])(I?Q\d\w*|T?Q\d_\d|B?F16|F32|MXFP4\w*)(?![A-Z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class CachedModel:
    """A model in the hub's cache.

    Attributes:
        name: owner/name.
        bytes: size of its files on the disk.
        format: such as "GGUF Q4_K_M" or "safetensors"; "no weights" if only other files are there.
        complete: False if a download was interrupted.
        last_used: when a file was last read, in seconds since 1970.
    """

    name: str
    bytes: int
    format: str
    complete: bool
    last_used: float


def cache_folder() -> Path:
    """Returns the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def cached_names() -> list[str]:
    """Returns the names (owner/name) of the models in the cache, in alphabetical order."""
    return sorted(name for name, _ in _folders())


def cached_models() -> list[CachedModel]:
    """Returns the models in the cache, the most recently used first."""
    models = [_describe(name, folder) for name, folder in _folders()]
    return sorted(models, key=lambda model: (-model.last_used, model.name))


def find_cached(text: str) -> Reference | None:
    """Finds the model in the cache whose name contains `text`; returns None if there is none.

    Case is ignored. A model of exactly this name, with or without owner, precedes others. `:part` selects a GGUF file.

    Raises:
        ModelNotFoundError: several models match.
    """
    name_part, _, part = text.partition(":")
    key = name_part.lower()
    if not key or key.startswith((".", "/", "~")):
        return None
    names = cached_names()
    exact = [name for name in names if key in (name.lower(), name.lower().partition("/")[2])]
    matches = exact or [name for name in names if key in name.lower()]
    if len(matches) > 1:
        raise ModelNotFoundError(
            f"{show(text)} matches several downloaded models: {', '.join(matches)}; give a full name"
        )
    return Reference(matches[0], None, part or None) if matches else None


def remove_cached(name: str) -> None:
    """Deletes a model from the cache.

    Raises:
        StorageError: a file cannot be deleted.
    """
    for folder in (cache_folder(), cache_folder() / ".locks"):
        path = folder / cache_name(name)
        if path.exists():
            with storage_errors(path):
                shutil.rmtree(path)


def _folders() -> Iterator[tuple[str, Path]]:
    try:
        folders = list(cache_folder().iterdir())
    except OSError:  # nothing was downloaded yet, or the folder cannot be read
        return
    for folder in folders:
        name = cached_model(folder.name)
        if name is not None and folder.is_dir():
            yield name, folder


def _describe(name: str, folder: Path) -> CachedModel:
    files = [path for path in folder.rglob("*") if path.is_file()]
    stats = [path.stat() for path in files if not path.is_symlink()]
    snapshots = [path.name for path in files if "snapshots" in path.parts]
    suffix = next((suffix for suffix in _FORMATS if any(file.endswith(suffix) for file in snapshots)), None)
    kinds = {match[0].upper() for file in snapshots if file.endswith(".gguf") for match in _QUANTISATION.finditer(file)}
    label = "no weights" if suffix is None else " ".join([_FORMATS[suffix], ", ".join(sorted(kinds))]).strip()
    complete = bool(snapshots) and not any(path.name.endswith(".incomplete") for path in files)
    last_used = max((max(stat.st_atime, stat.st_mtime) for stat in stats), default=0.0)
    return CachedModel(name, sum(stat.st_size for stat in stats), label, complete, last_used)
