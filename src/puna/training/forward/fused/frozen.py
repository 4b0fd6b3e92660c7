"""Activations of frozen layers that later epochs reuse: those that enter the lowest layer that trains.

Legend: n tokens of a document, D hidden.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.errors import ConfigError, PunaError, show
from puna.files import free_bytes
from puna.saving import parse_size
from puna.training.methods.base import Trainable

_MARGIN = 1 << 30
"""Free bytes of the disk that the file leaves to the states, records and result of the run."""

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")


def lowest_trained(trainable: Trainable) -> int:
    """Returns the number of the lowest layer with a trained parameter; that of all layers if only the head trains.

    It is 0 if the embedding trains, or if there are virtual tokens.
    """
    if trainable.virtual is not None or trainable.token_rows:
        return 0
    trained = [name for name, parameter in trainable.model.named_parameters() if parameter.requires_grad]
    names = [*trained, *trainable.low_rank, *trainable.scalings, *trainable.bottlenecks]
    if any("embed_tokens" in name for name in names):
        return 0
    numbers = [int(match[1]) for name in names if (match := _LAYER.match(name))]
    return min(numbers, default=trainable.model.config.num_hidden_layers)


def read_cache_size(text: str | None) -> int | None:
    """Returns the bytes of the setting `activation_cache`; raises ConfigError if it is not a size."""
    try:
        return None if text is None else parse_size(text)
    except PunaError as exc:
        raise ConfigError(f"activation_cache is {show(text)}; it must be a size such as 800MB, 2GB or 2GiB") from exc


class ActivationCache:
    """The input of one layer for each document, by its token ids.

    Args:
        limit: maximum bytes in memory. What exceeds it is in a temporary file; if the disk is full, it is not kept.
        folder: where the file is; None for the folder of TMPDIR.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._free, self._folder = limit, folder
        self._tensors: dict[bytes, Tensor] = {}
        self._file: BinaryIO | None = None
        self._places: dict[bytes, tuple[int, tuple[int, ...], torch.dtype]] = {}
        self._end, self._full = 0, False

    def read(self, ids: NDArray[np.int64]) -> Tensor | None:
        """Returns the activations of a document, (n, D); None if they are not stored."""
        key = _key(ids)
        if key in self._tensors or key not in self._places:
            return self._tensors.get(key)
        assert self._file is not None
        offset, shape, dtype = self._places[key]
        result = torch.empty(shape, dtype=dtype)
        self._file.seek(offset)
        count = self._file.readinto(_bytes(result))  # type: ignore[attr-defined]
        return result if count == result.nbytes else None

    def store(self, ids: NDArray[np.int64], states: Tensor) -> None:
        """Keeps a copy of the activations of a document."""
        key, states = _key(ids), states.detach().clone()
        if states.nbytes <= self._free:
            self._tensors[key] = states
            self._free -= states.nbytes
        elif not self._full:
            try:
                self._write(key, states)
            except OSError:  # the documents that are not stored are computed in every epoch
                self._full = True

    def _write(self, key: bytes, states: Tensor) -> None:
        if free_bytes(Path(self._folder or tempfile.gettempdir())) < states.nbytes + _MARGIN:
            raise OSError("the disk is almost full")
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # lives as long as self
            weakref.finalize(self, self._file.close)
        self._file.seek(self._end)
        if self._file.write(_bytes(states)) != states.nbytes:
            raise OSError("the disk is full")
        self._places[key] = self._end, tuple(states.shape), states.dtype
        self._end += states.nbytes


def _key(ids: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def _bytes(tensor: Tensor) -> memoryview:
    values: NDArray[np.uint8] = tensor.view(torch.uint8).numpy()
    return values.reshape(-1).data
