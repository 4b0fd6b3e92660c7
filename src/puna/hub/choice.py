"""Chooses the files of a repository to download: weights in one format, and the small files next to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from puna.errors import ModelNotFoundError
from puna.files import group_parts, parse_part_name
from puna.files.data_files import choose_data_files
from puna.hub.reference import Reference

Need = Literal["model", "tokenizer", "config", "data"]
"""The part of a repository to download. "tokenizer" and "config" include weights only if no small file has that part;
"data" is for data sets."""

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

_ADAPTER = ("adapter_model.*",)

_MAX_SHOWN = 30
"""Maximum number of names in an error."""


@dataclass(frozen=True)
class Selection:
    """The requested files of a repository: the files for `need`, or if `include` is given, the files that match it.

    With `variant`, the weights are those of model.VARIANT.safetensors; `use_safetensors` chooses safetensors files
    (True) or PyTorch files (False). For "data", the files are those of `split`.
    """

    need: Need
    include: tuple[str, ...]
    subfolder: str
    reference: Reference
    variant: str | None = None
    use_safetensors: bool | None = None
    split: str = "train"

    def choose(self, names: Iterable[str]) -> list[str]:
        """Returns the files to download, from the names of all files.

        Raises:
            ModelNotFoundError: no file matches, or several GGUF files match and the reference chooses none of them.
        """
        names = sorted(names)
        if self.need == "data":
            return self._data_files(names)
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

    def _data_files(self, names: list[str]) -> list[str]:
        chosen = choose_data_files([name for name in names if (self.reference.part or "") in name], self.split)
        if not chosen:
            raise ModelNotFoundError(
                f"{self.reference}: no data files of the split {self.split!r}; the data set has {_list(names)}. Choose "
                "another split, or download the files and give their paths"
            )
        return chosen

    def _weights(self, siblings: list[str], names: list[str]) -> list[str]:
        if self.reference.part is not None:
            return self._find_by_name(names, self.reference.part.lower())
        no_adapters = [name for name in siblings if not _matches(name, _ADAPTER)]
        by_format = ([name for name in no_adapters if _matches(name, patterns)] for patterns in self._patterns())
        # An adapter is downloaded too: the loader names its base model.
        weights = next((files for files in by_format if files), [name for name in siblings if name not in no_adapters])
        if not weights:
            raise ModelNotFoundError(f"{self.reference}: no weights that puna reads; the model has {_list(names)}")
        models = group_parts(weights)
        if len(models) > 1 and weights[0].endswith(".gguf"):
            part = parse_part_name(weights[0])
            stem = PurePosixPath(weights[0]).stem if part is None else part.prefix
            raise ModelNotFoundError(
                f"{self.reference}: {len(models)} GGUF files: {_list([files[0] for files in models])}. Choose one by a "
                f"part of its name, such as {self.reference}:{stem.rpartition('-')[2] or stem}"
            )
        return weights

    def _patterns(self) -> Iterable[tuple[str, ...]]:
        """Returns the patterns of weight files, in order of preference."""
        if self.use_safetensors is None and self.variant is None:
            return _WEIGHTS
        stem = "{}" if self.variant is None else f"{{}}.{self.variant}"
        names = (("model", ".safetensors", True), ("pytorch_model", ".bin", False))
        return [
            (f"{stem.format(name)}{ending}", f"{stem.format(name)}-*{ending}")
            for name, ending, is_safe in names
            if self.use_safetensors in (None, is_safe)
        ]

    def _find_by_name(self, names: list[str], part: str) -> list[str]:
        """Returns the only GGUF file that has `part` in its name, or the parts of the only such split model."""
        models = group_parts(name for name in names if name.endswith(".gguf"))
        matches = [files for files in models if any(part in PurePosixPath(name).name.lower() for name in files)]
        if len(matches) == 1:
            return matches[0]
        shown = [files[0] for files in matches or models] or names
        raise ModelNotFoundError(
            f"{self.reference}: {len(matches)} GGUF files with {self.reference.part!r} in their names; the model has "
            f"{_list(shown)}"
        )

    def path(self, folder: Path, chosen: list[str]) -> Path:
        """Returns the path of the model: the chosen GGUF file, or the first of its parts; without one, the folder."""
        models = group_parts(name for name in chosen if name.endswith(".gguf"))
        return folder / models[0][0] if len(models) == 1 else folder / self.subfolder


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _list(names: list[str]) -> str:
    return ", ".join(names[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "") if names else "no files"
