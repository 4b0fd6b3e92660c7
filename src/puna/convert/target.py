"""The files that a conversion writes: large files of tensors, then the small files that complete the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from puna.checkpoint import Checkpoint
from puna.checkpoint.names import EMBEDDING, expected_tensors
from puna.checkpoint.weight import RowSource
from puna.convert.lazy_rows import Cast, pack, pieces, values
from puna.errors import CheckpointError, show
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.new_tensor import NewTensor

_PLAIN_TYPES = {
    spelling.lower(): form
    for form in FORMATS.values()
    if form.pack is not None
    for spelling in (form.name, str(form.torch), f"torch.{form.torch}")
}


@dataclass(frozen=True)
class NewFile:
    """A file of tensors; `write(path, tensors)` writes it."""

    name: str
    tensors: tuple[NewTensor, ...]
    write: Callable[[Path, Sequence[NewTensor]], None]

    @property
    def bytes(self) -> int:
        """Bytes of the tensors, without the header, which is small."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True)
class Target:
    """All files of the converted model.

    Attributes:
        files: the large files.
        finish: writes the small files into a folder and returns notes for the user.
        tensors: the tensors that a reader of the files gets, with Hugging Face's names and order of rows.
        fallbacks: for each matrix whose rows do not fit the format of the mix, the format that is used instead.
        notes: settings that the layout cannot hold or that its readers interpret differently.
        llama_version: in Meta's layout, the release to pass when reading the files, if they do not determine it.
    """

    files: tuple[NewFile, ...]
    finish: Callable[[Path], list[str]]
    tensors: Mapping[str, RowSource]
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    llama_version: str | None = None


def new_tensor(name: str, source: RowSource, first: int = 0, last: int | None = None) -> NewTensor:
    """Returns a tensor to be written with the rows `first` to `last` - 1 of `source`."""
    end = source.shape[0] if last is None else last
    return NewTensor(name, source.format, (end - first, *source.shape[1:]), partial(pieces, source, first, end))


def find_dtype(name: str | None) -> BlockFormat | None:
    """Returns the plain type called `name` ("bfloat16", "bf16", ...), in upper or lower case; None for None.

    Raises:
        CheckpointError: there is no such type.
    """
    if name is None:
        return None
    form = _PLAIN_TYPES.get(str(name).lower())
    if form is None:
        raise CheckpointError(f"dtype is {show(name)}; it must be float32, float16 or bfloat16")
    return form


def main_type(checkpoint: Checkpoint, dtype: BlockFormat | None) -> BlockFormat:
    """Returns the plain type of most tensors: the requested one, else the source's.

    The default for a quantised source is float32, the only type that holds all values of blocks exactly.
    """
    if dtype is not None:
        return dtype
    if any(weight.format.values > 1 for weight in checkpoint.tensors.values()):
        return FORMATS["f32"]
    return checkpoint.tensors[EMBEDDING].format


def plain_tensors(checkpoint: Checkpoint, dtype: BlockFormat | None) -> dict[str, RowSource]:
    """Returns the tensors in plain types, in the order of `expected_tensors`; a `dtype` of None keeps plain types."""
    main = main_type(checkpoint, dtype)
    names = [name for name, _ in expected_tensors(checkpoint.config, checkpoint.head)]
    return {name: _plain(checkpoint.tensors[name], main, dtype) for name in names if name in checkpoint.tensors}


def _plain(source: RowSource, main: BlockFormat, dtype: BlockFormat | None) -> RowSource:
    """Casts a tensor to `main` if `dtype` is set, or if it is quantised or a vector that `main` holds exactly."""
    if source.format == main:
        return source
    if dtype is not None or source.format.values > 1 or (len(source.shape) == 1 and _keeps_values(source, main)):
        return Cast(source, main)
    return source


def _keeps_values(source: RowSource, to: BlockFormat) -> bool:
    """Whether a cast keeps a vector's values exactly, as for norms that a GGUF file widened to float32."""
    numbers = values(source, np.arange(source.shape[0])).reshape(-1)
    return bool(np.array_equal(to.decode(pack(numbers, to).reshape(-1)), numbers, equal_nan=True))
