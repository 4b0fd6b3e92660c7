"""What a conversion writes: big files of tensors, then the small files that make them a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from puna.checkpoint.weight import Rows
from puna.convert.lazy_rows import pieces
from puna.formats.new_tensor import NewTensor


@dataclass(frozen=True)
class NewFile:
    """A file of tensors to be written by `write`, which gets its path and the tensors."""

    name: str
    tensors: tuple[NewTensor, ...]
    write: Callable[[Path, Sequence[NewTensor]], None]

    @property
    def bytes(self) -> int:
        """Bytes of the tensors; headers are small."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True)
class Target:
    """Everything to be written.

    Attributes:
        files: the big files.
        finish: writes the small ones into the folder, and returns what the user should know.
        tensors: what a reader will find under Hugging Face's names, in their order of rows.
        fallbacks: formats of matrices whose rows do not fit the format they should have, by name.
        notes: what of the model the layout does not hold, or its readers take otherwise.
        llama_version: in Meta's layout, the release to read it as, where the files do not show it.
    """

    files: tuple[NewFile, ...]
    finish: Callable[[Path], list[str]]
    tensors: Mapping[str, Rows]
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    llama_version: str | None = None


def new_tensor(name: str, rows: Rows, first: int = 0, last: int | None = None) -> NewTensor:
    """A tensor to be written from some rows of a source."""
    end = rows.shape[0] if last is None else last
    return NewTensor(name, rows.format, (end - first, *rows.shape[1:]), partial(pieces, rows, first, end))
