"""`Dataset`: tokenised examples, in a temporary file once they exceed some megabytes, and their hash."""

from __future__ import annotations

import hashlib
import marshal
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import StorageError
from puna.training.batch import Example, Label, Source

_IN_MEMORY = 2**26
"""Bytes of tokens after which they are moved to a temporary file (TMPDIR chooses its folder)."""


class _Stored(ABC):
    """Examples whose lengths are known.

    Attributes:
        lengths: (n,) tokens of each example.
        total_weights: (n,) summed weight of the tokens of each example.
    """

    lengths: NDArray[np.int32]
    total_weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def longest(self) -> Example:
        """Returns the example with the most tokens."""
        return self[int(np.argmax(self.lengths))]


class Dataset(_Stored):
    """Examples by index. In memory are 20 bytes per example, and up to 64 MB of tokens."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self.lengths = np.array(store.lengths, np.int32)
        self.total_weights = np.array(store.total_weights, np.float64)

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._store.read(int(index) % len(self))

    def digest(self) -> str:
        """Returns the SHA-256 of all ids, weights and labels in their order, in hexadecimal digits."""
        return self._store.hash.hexdigest()


class DatasetWriter:
    """Collects examples; `finish` returns them as a `Dataset`."""

    def __init__(self) -> None:
        self._store = _Store()

    def add(self, example: Example) -> None:
        """Appends an example; raises StorageError if the disk is full."""
        self._store.append(example)

    def finish(self) -> Dataset:
        """Returns the examples that were added."""
        return Dataset(self._store)


class _Store:
    """Records of examples: int32 ids, runs of equal weights (their ends and values), and a header with the rest."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  # lives as long as the store
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._offsets = array("q", [0])
        self._names: dict[str, int] = {}
        self.lengths, self.total_weights = array("i"), array("d")
        self.hash = hashlib.sha256()

    def append(self, example: Example) -> None:
        ends, values = _runs(example.weights)
        source = example.source
        name = self._names.setdefault(source.file, len(self._names))
        ids = np.ascontiguousarray(example.ids, np.int32).tobytes()
        content = marshal.dumps((ids, ends.tobytes(), values.tobytes(), example.label), 4)
        record = marshal.dumps((content, name, source.row, source.unit), 4)
        self.hash.update(len(content).to_bytes(8, "little") + content)
        try:
            with self._lock:
                self._file.seek(self._offsets[-1])
                self._file.write(record)
        except OSError as exc:
            raise StorageError(
                f"the temporary file of the tokens cannot be written ({exc.strerror or exc}); free some space, or set "
                "TMPDIR to a folder on a larger disk"
            ) from exc
        self._offsets.append(self._offsets[-1] + len(record))
        self.lengths.append(len(example.ids))
        self.total_weights.append(float(example.weights.sum(dtype=np.float64)))

    def read(self, index: int) -> Example:
        with self._lock:
            self._file.seek(self._offsets[index])
            record = self._file.read(self._offsets[index + 1] - self._offsets[index])
        content, name, row, unit = marshal.loads(record)
        ids, ends, values, label = marshal.loads(content)
        counts = np.diff(np.frombuffer(ends, np.int32), prepend=np.int32(0)).tolist()
        weights = np.repeat(np.frombuffer(values, np.float32), counts)
        source = Source(list(self._names)[name], row, unit)
        return Example(np.frombuffer(ids, np.int32), weights, _as_label(label), source)


def _runs(weights: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns the end and the value of each run of equal weights."""
    weights = np.asarray(weights, np.float32)
    ends = np.append(np.flatnonzero(np.diff(weights)) + 1, len(weights)).astype(np.int32)
    return ends, weights[ends - 1] if len(weights) else np.zeros(1, np.float32)


def _as_label(label: Any) -> Label:
    return tuple(label) if isinstance(label, list) else label


class Subset(_Stored):
    """Some examples of a data set, in the given order."""

    def __init__(self, examples: Dataset, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self._examples, self._indices = examples, np.asarray(indices, np.int64)
        self.lengths = examples.lengths[self._indices]
        self.total_weights = examples.total_weights[self._indices]

    def __getitem__(self, index: int) -> Example:
        return self._examples[int(self._indices[index])]

    def digest(self) -> str:
        """Returns the SHA-256 of the data set's digest and the indices, in hexadecimal digits."""
        return hashlib.sha256(self._examples.digest().encode() + self._indices.tobytes()).hexdigest()
