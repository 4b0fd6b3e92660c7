"""Chooses the files of a repository to download: weights in one format, and the small files next to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from puna.errors import ModelNotFoundError
from puna.hub.reference import Reference

Need = Literal["model", "tokenizer", "config"]
"""The part of a model to download. "tokenizer" and "config" include weights only if no small file has that part."""

_SMALL = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*")
"""Patterns of a model's files other than weights. Files in other folders of the repository are not downloaded."""

_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("consolidated.*.pth",),
    ("*.gguf",),
)
"""Patterns of weight files by format, in order of preference. All files of the first format with a match are chosen."""

_MAX_SHOWN = 30
"""Maximum number of names in an error."""


@dataclass(frozen=True)
class Selection:
    """The requested files of a repository: the files for `need`, or if `include` is given, the files that match it."""

    need: Need
    include: tuple[str, ...]
    subfolder: str
    reference: Reference

    def choose(self, names: Iterable[str]) -> list[str]:
        """Returns the files to download, from the names of all files.

        Raises:
            ModelNotFoundError: no file matches, or several GGUF files match and the reference chooses none of them.
        """
        names = sorted(names)
        if self.include:
            chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in self.include)]
            if not chosen:
                raise ModelNotFoundError(
                    f"{self.reference}: no file matches {', '.join(self.include)}; the model has {_list(names)}"
                )
            return chosen
        siblings = [name for name in names if PurePosixPath(name).parent == PurePosixPath(self.subfolder)]
        small = [name for name in siblings if _matches(name, _SMALL)]
        file_names = {PurePosixPath(name).name for name in small}
        small_suffice = {"model": False, "tokenizer": bool(file_names & {"tokenizer.json", "tokenizer.model"}),
                         "config": "config.json" in file_names}[self.need]  # fmt: skip
        if small_suffice and self.reference.part is None:
            return small
        return small + self._weights(siblings, names)

    def _weights(self, siblings: list[str], names: list[str]) -> list[str]:
        if self.reference.part is not None:
            files = [name for name in names if name.endswith(".gguf")]
            matches = [name for name in files if self.reference.part.lower() in PurePosixPath(name).name.lower()]
            if len(matches) == 1:
                return matches
            problem = f"{len(matches)} GGUF files with {self.reference.part!r} in their names"
            raise ModelNotFoundError(f"{self.reference}: {problem}; the model has {_list(matches or files or names)}")
        by_format = ([name for name in siblings if _matches(name, patterns)] for patterns in _WEIGHTS)
        weights = next((files for files in by_format if files), [])
        if not weights:
            raise ModelNotFoundError(f"{self.reference}: no weights that puna reads; the model has {_list(names)}")
        if len(weights) > 1 and weights[0].endswith(".gguf"):
            stem = PurePosixPath(weights[0]).stem
            raise ModelNotFoundError(
                f"{self.reference}: {len(weights)} GGUF files: {_list(weights)}. Choose one by a part of its name, "
                f"such as {self.reference}:{stem.rpartition('-')[2] or stem}"
            )
        return weights

    def path(self, folder: Path, chosen: list[str]) -> Path:
        """Returns the path of the model: its GGUF file if exactly one was chosen, else its folder."""
        files = [name for name in chosen if name.endswith(".gguf")]
        return folder / files[0] if len(files) == 1 else folder / self.subfolder


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _list(names: list[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "") if names else "no files"
