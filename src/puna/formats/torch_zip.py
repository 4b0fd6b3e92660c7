"""Reads state dicts saved by `torch.save` (zip format, PyTorch 1.6 and later) as views of the mapped file.

Uses neither torch nor `pickle`: the zip's directory locates the bytes of the storages, and `pickle_reader` returns the
shape, strides and storage of each tensor. The range that encloses a tensor that is not
contiguous is copied when its bytes are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.errors import CheckpointError, show
from puna.formats.blocks import FORMATS, MAX_AXES, PARTS, BlockFormat, StoredTensor
from puna.formats.mapped import map_file, read_bytes, sniff
from puna.formats.pickle_reader import Global, StorageClass, read_pickle
from puna.formats.zip_entries import zip_entries

_BY_STORAGE = {item.torch_storage: item for item in (*FORMATS.values(), *PARTS) if item.torch_storage is not None}

_OTHER_STORAGES = ("Double", "Long", "Int", "Short", "Bool", "ComplexFloat", "ComplexDouble")


@dataclass(frozen=True)
class TorchZipFile:
    """An open file of `torch.save` and its `tensors`, in the order of the state dict."""

    path: Path
    tensors: dict[str, StoredTensor]


@dataclass(frozen=True)
class _Storage:
    kind: str  # the name of its class
    key: str  # the zip entry is data/KEY
    count: int  # number of elements


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int  # in elements, like the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_torch_zip(path: Path) -> TorchZipFile:
    """Opens a file of `torch.save`; reads the zip's directory and the pickle, not the tensor data.

    Raises:
        CheckpointError: the file has another format, or the pickle contains an object that is not a tensor in the file.
    """
    kind = sniff(path)
    if kind == "torch_legacy":
        raise CheckpointError(
            f"{path}: written by torch.save before PyTorch 1.6. If you trust the file, convert it: "
            "`torch.save(torch.load(path, weights_only=True), path)`"
        )
    if kind != "torch_zip":
        raise CheckpointError(f"{path}: a {kind} file, not a file of torch.save")
    try:
        entries = zip_entries(map_file(path))
        prefix = _prefix(entries)
        root = read_pickle(read_bytes(entries[f"{prefix}data.pkl"]).tobytes(), _GLOBALS, _persistent)
        return TorchZipFile(path, _state_dict(root, entries, prefix))
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def _prefix(entries: dict[str, NDArray[np.uint8]]) -> str:
    """Returns the folder of the archive's entries, with a slash; refuses TorchScript and big-endian archives."""
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"a zip with {len(pickles)} entries named data.pkl; torch.save writes one")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise CheckpointError("a TorchScript program; save a state dict instead: `model.state_dict()`")
    order = entries.get(f"{prefix}byteorder")
    if order is not None and read_bytes(order[:16]).tobytes() != b"little":
        raise CheckpointError(f"byte order {read_bytes(order[:16]).tobytes()!r}; puna reads little-endian files")
    return prefix


def _state_dict(root: Any, entries: dict[str, NDArray[np.uint8]], prefix: str) -> dict[str, StoredTensor]:
    if type(root) is not dict:
        raise CheckpointError(f"holds a {type(root).__name__.strip('_')}, not a state dict of names and tensors")
    tensors = {}
    for name, value in root.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            kind = type(value).__name__.strip("_")
            raise CheckpointError(f"entry {show(name)} is a {kind}, not a tensor; save only the state dict")
        try:
            tensors[name] = _view(name, value, entries, prefix)
        except CheckpointError as exc:
            raise CheckpointError(f"tensor {name!r}: {exc}") from exc
    return tensors


def _view(name: str, tensor: _Tensor, entries: dict[str, NDArray[np.uint8]], prefix: str) -> StoredTensor:
    form = _format(tensor.storage)
    raw = entries.get(f"{prefix}data/{tensor.storage.key}")
    if raw is None or len(raw) != tensor.storage.count * form.bytes:
        state = "is missing" if raw is None else f"has {len(raw)} bytes"
        raise CheckpointError(
            f"storage {show(tensor.storage.key)} {state}; {tensor.storage.count} {form.torch} elements need "
            f"{tensor.storage.count * form.bytes} bytes"
        )
    count = math.prod(tensor.shape)
    last = tensor.offset + sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.strides, strict=True))
    if count > tensor.storage.count or last >= tensor.storage.count:
        flaw = "repeat elements" if last < tensor.storage.count else f"reach element {last}"
        raise CheckpointError(
            f"shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset} {flaw}; the storage has "
            f"{tensor.storage.count} elements. Save the tensor with `.contiguous()`"
        )
    view = np.lib.stride_tricks.as_strided(
        raw[tensor.offset * form.bytes :],
        shape=(*tensor.shape, form.bytes),
        strides=(*(step * form.bytes for step in tensor.strides), 1),
        writeable=False,
    )
    return StoredTensor(name, tensor.shape, form, view)


def _format(storage: _Storage) -> BlockFormat:
    form = _BY_STORAGE.get(storage.kind)
    if form is None:
        supported = ", ".join(str(item.torch) for item in _BY_STORAGE.values())
        raise CheckpointError(f"the elements are those of a torch.{storage.kind}; puna reads {supported}")
    return form


# The functions that the pickle of a state dict may call. They only describe tensors and do not read the file.


def _persistent(key: Any) -> _Storage:
    match key:
        case ("storage", StorageClass(kind), str(name), str(), int(count)) if count >= 0:
            return _Storage(kind, name, count)
    raise CheckpointError("the pickle has a persistent id that is not a storage's")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Replaces `torch._utils._rebuild_tensor` and `_v2`; ignores gradient flags and hooks."""
    axes_agree = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MAX_AXES
    if not isinstance(storage, _Storage) or not axes_agree:
        raise CheckpointError("the pickle describes a tensor without storage, or with shape and strides that disagree")
    if not all(type(item) is int and 0 <= item < 2**48 for item in (offset, *shape, *strides)) or 0 in shape:
        raise CheckpointError("the pickle describes a tensor with an offset, extent or stride out of range")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    """Replaces `torch._utils._rebuild_parameter`; returns its tensor and ignores gradient flags."""
    return data


def _ordered_dict() -> dict[Any, Any]:
    return {}


_GLOBALS: dict[str, Global | StorageClass] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    **{f"torch.{name}": StorageClass(name) for name in _BY_STORAGE},
    **{f"torch.{name}Storage": StorageClass(f"{name}Storage") for name in _OTHER_STORAGES},
}
