"""`State`: everything that a run needs to be resumed, and its folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.errors import TrainingError
from puna.files import atomic_write, read_json
from puna.formats.safetensors import open_safetensors
from puna.saving import new_tensor, write_shard

TENSORS, RECORD = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """The state of a run after a step.

    Attributes:
        step: number of completed steps.
        tensors: parameters and values of the optimizer by name; float32, float16 or bfloat16.
        record: values that JSON holds exactly: settings, losses, statistics.
    """

    step: int
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_state(state: State, folder: Path) -> None:
    """Writes a state into an existing, empty folder. All bytes are on the disk when the function returns.

    Raises:
        StorageError: the disk is full, or a file cannot be written.
    """
    write_shard(
        folder / TENSORS,
        [
            new_tensor(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _bytes(tensor))
            for name, tensor in state.tensors.items()
        ],
    )
    content = {"step": state.step, "tensors": _file_digest(folder / TENSORS), **state.record}
    with atomic_write(folder / RECORD) as file:
        file.write(json.dumps(content | {"digest": _digest(content)}, allow_nan=False).encode())
    sync_folder(folder)


def read_state(folder: Path) -> State:
    """Returns a state whose files are complete and unchanged.

    Raises:
        PunaError: a file is missing, truncated or changed.
    """
    content = read_json(folder / RECORD, TrainingError)
    expected = content.pop("digest", None)
    if expected != _digest(content):
        raise TrainingError(f"{folder / RECORD} was changed after it was written; its digest differs")
    if content.pop("tensors") != _file_digest(folder / TENSORS):
        raise TrainingError(f"{folder / TENSORS} was changed or truncated after it was written; its digest differs")
    tensors = {
        name: torch.from_numpy(np.array(item.data)).view(getattr(torch, item.format.torch or "")).reshape(item.shape)
        for name, item in open_safetensors(folder / TENSORS).tensors.items()
    }
    return State(content.pop("step"), tensors, content)


def sync_folder(folder: Path) -> None:
    """Waits until the names of the files in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    flat: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as exc:
        raise TrainingError(f"{path} cannot be read ({exc.strerror or exc})") from exc
    return digest.hexdigest()
