"""Writes the golden checkpoint with changes to its configuration, tensors and files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.golden.files import LAYOUTS
from tests.helpers.torch_files import Tensors, save_torch

GOLDEN = LAYOUTS["hf"]
DROP = object()
"""As the value of a key, removes the key from the file."""


@dataclass(frozen=True)
class EditedFolder:
    """A folder with the golden checkpoint in which settings, tensors or files are edited.

    Attributes:
        config: changed keys of config.json.
        tensors: a function that returns the edited tensors.
        files: the names of the weight files among which the tensors are divided.
        edit: a function that edits the folder after it is written.
        equivalent: changed keys of config.json of an ordinary model with the same logits.
        note: part of a note that `inspect_checkpoint` reports.
        reference: whether transformers 5.23 loads the folder too, with the same logits.
        error: the pattern of the message, for a folder that is refused.
    """

    config: dict[str, Any] = field(default_factory=dict)
    tensors: Callable[[Tensors], Tensors] = dict
    files: Sequence[str] = ("model.safetensors",)
    edit: Callable[[Path], None] = lambda folder: None
    equivalent: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    reference: bool = True
    error: str = ""

    def write(self, folder: Path) -> Path:
        """Writes the edited checkpoint to `folder`, and returns `folder`."""
        shutil.copytree(GOLDEN, folder)
        (folder / "model.safetensors").unlink()
        change(self.config)(folder)
        write_weights(folder, self.tensors(golden_tensors()), self.files)
        self.edit(folder)
        return folder


def golden_tensors() -> Tensors:
    return dict(safetensors.numpy.load_file(GOLDEN / "model.safetensors"))


def write_weights(folder: Path, tensors: Tensors, files: Sequence[str]) -> None:
    """Writes the tensors to files, each of which gets consecutive tensors."""
    names = list(tensors)
    bounds = [len(names) * number // len(files) for number in range(len(files) + 1)]
    for file, start, stop in zip(files, bounds, bounds[1:], strict=False):
        part = {name: tensors[name] for name in names[start:stop]}
        if file.endswith(".bin"):
            save_torch(part, folder / file)
        else:
            safetensors.numpy.save_file(part, folder / file)


def change(fields: dict[str, Any], name: str = "config.json") -> Callable[[Path], None]:
    """Returns a function that changes keys of a JSON file in a folder."""

    def edit(folder: Path) -> None:
        path = folder / name
        content = (json.loads(path.read_text()) if path.exists() else {}) | fields
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not DROP}))

    return edit


def all_of(*edits: Callable[[Path], None]) -> Callable[[Path], None]:
    """Returns a function that makes several edits in a folder."""

    def edit(folder: Path) -> None:
        for part in edits:
            part(folder)

    return edit


def delete(*names: str) -> Callable[[Path], None]:
    """Returns a function that deletes files of a folder."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    """Returns a function that adds a prefix to the names of all tensors."""
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def replaced(old: str, new: str) -> Callable[[Tensors], Tensors]:
    """Returns a function that replaces a text in the names of all tensors."""
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def plus(**more: np.ndarray) -> Callable[[Tensors], Tensors]:
    """Returns a function that adds tensors; `__` in a keyword represents a dot."""
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}


def per_layer(name: str, *shape: int) -> dict[str, np.ndarray]:
    """Returns keyword arguments of `plus`: a tensor of zeros in each layer."""
    return {f"model__layers__{n}__{name}": np.zeros(shape, np.float32) for n in range(2)}


def index(drop: str = "", more: dict[str, str] | None = None) -> Callable[[Path], None]:
    """Returns a function that writes the index of a folder's safetensors files.

    Args:
        drop: a text; tensors whose name, or whose file's name, contains it are not listed.
        more: entries that are added to the index.
    """

    def edit(folder: Path) -> None:
        files = {path.name: safetensors.numpy.load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        weight_map = {
            name: file
            for file, tensors in files.items()
            for name in tensors
            if not drop or drop not in f"{name} {file}"
        }
        content = {"metadata": {}, "weight_map": weight_map | (more or {})}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return edit


def padded_rows(tensors: Tensors) -> Tensors:
    """Adds 64 rows, which no token uses, to the embedding and the head."""
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return tensors | {name: np.concatenate([tensors[name], np.full((64, 64), -1, np.float32)]) for name in names}
