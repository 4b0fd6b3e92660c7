"""Reads and writes the files of torch.save, for tests that also run where torch is not installed.

Tensors are NumPy arrays. The package ml_dtypes provides bfloat16.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from puna.formats.torch_zip import open_torch_zip
from puna.formats.torch_zip_writer import write_torch_zip

Tensors = dict[str, np.ndarray]
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
HAS_TORCH = importlib.util.find_spec("torch") is not None

needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
BACKENDS = ["native", pytest.param("torch", marks=needs_torch)]


def to_torch(array: np.ndarray) -> Any:
    """Returns the array as a torch tensor with the same memory."""
    import torch

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(tensor: Any) -> np.ndarray:
    """Returns the torch tensor as an array with the same memory, if it is contiguous."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def save_torch(tensors: Tensors, path: Path) -> None:
    """Writes a state dict: with torch.save, or with puna's own writer where torch is not installed."""
    if HAS_TORCH:
        import torch

        torch.save({name: to_torch(array) for name, array in tensors.items()}, path)
        return
    formats = {form.torch: form for form in FORMATS.values() if form.torch}
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_torch_zip(path, [NewTensor(n, formats[a.dtype.name], a.shape, a.tobytes()) for n, a in arrays.items()])


def load_torch(path: Path, mmap: bool = False) -> Tensors:
    """Reads a state dict: with torch.load, or with puna's own reader where torch is not installed."""
    if HAS_TORCH:
        import torch

        return {name: from_torch(t) for name, t in torch.load(path, weights_only=True, mmap=mmap).items()}
    tensors = open_torch_zip(path).tensors
    return {name: np.array(t.data).view(DTYPES[str(t.format.torch)]).reshape(t.shape) for name, t in tensors.items()}
