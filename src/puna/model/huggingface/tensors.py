"""The types and bytes of tensors, for writers of files."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def tensor_description(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """Returns the name of a tensor's type, and its shape."""
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def tensor_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Returns the bytes of a tensor in C order; on the CPU, they share its memory."""
    packed: NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return packed
