"""Which files of a repository are downloaded: of weights one kind, and the small files beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from puna.errors import ModelNotFoundError
from puna.hub.reference import Reference

Need = Literal["model", "tokenizer", "config"]
"""What of a model is needed: all of it, or its small files alone where those are enough."""

_SMALL = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*")
"""Everything of a model but its weights; only files that lie beside the weights are taken."""

_WEIGHTS = (
    ("model.safetensors", "model-*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("consolidated.*.pth",),
    ("*.gguf",),
)
"""Weights, the kinds puna prefers first; of the first kind there is, all are taken."""

_LISTED = 30
"""Names listed in an error."""


@dataclass(frozen=True)
class Wanted:
    """What of a repository is wanted."""

    need: Need
    include: tuple[str, ...]
    subfolder: str
    reference: Reference

    def choose(self, names: Iterable[str]) -> list[str]:
        """The files to take, of all there are.

        Raises:
            ModelNotFoundError: none, or several GGUF files of which one has to be named.
        """
        names = sorted(names)
        if self.include:
            chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in self.include)]
            if not chosen:
                raise ModelNotFoundError(
                    f"{self.reference}: no file matches {', '.join(self.include)}; it has {_listed(names)}"
                )
            return chosen
        here = [name for name in names if PurePosixPath(name).parent == PurePosixPath(self.subfolder)]
        small = [name for name in here if _matches(name, _SMALL)]
        held = {PurePosixPath(name).name for name in small}
        enough = {"model": False, "tokenizer": bool(held & {"tokenizer.json", "tokenizer.model"}),
                  "config": "config.json" in held}[self.need]  # fmt: skip
        if enough and self.reference.part is None:
            return small
        return small + self._weights(here, names)

    def _weights(self, here: list[str], names: list[str]) -> list[str]:
        if self.reference.part is not None:
            files = [name for name in names if name.endswith(".gguf")]
            found = [name for name in files if self.reference.part.lower() in PurePosixPath(name).name.lower()]
            if len(found) == 1:
                return found
            what = f"{len(found)} GGUF files with {self.reference.part!r} in their names"
            raise ModelNotFoundError(f"{self.reference}: {what}; it has {_listed(found or files or names)}")
        weights = next((found for kind in _WEIGHTS if (found := [name for name in here if _matches(name, kind)])), [])
        if not weights:
            raise ModelNotFoundError(f"{self.reference}: no weights that puna reads; it has {_listed(names)}")
        if len(weights) > 1 and weights[0].endswith(".gguf"):
            stem = PurePosixPath(weights[0]).stem
            raise ModelNotFoundError(
                f"{self.reference}: {len(weights)} GGUF files: {_listed(weights)}. Name one by a part of its name, "
                f"such as {self.reference}:{stem.rpartition('-')[2] or stem}"
            )
        return weights

    def path(self, folder: Path, chosen: list[str]) -> Path:
        """The model's folder, or its GGUF file where that is its only one."""
        files = [name for name in chosen if name.endswith(".gguf")]
        return folder / files[0] if len(files) == 1 else folder / self.subfolder


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "") if names else "no files"
