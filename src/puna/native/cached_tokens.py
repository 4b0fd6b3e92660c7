"""The keys and values in pages of the native cache, as arrays. The layout is that of `HeadCache` in csrc/kernels.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.backend import PAGE
from puna.errors import BackendError

CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}
"""Types of cached keys and values, with ggml's type numbers."""

_NUMBERS = {CACHE_TYPES["f32"]: np.float32, CACHE_TYPES["f16"]: np.float16, CACHE_TYPES["bf16"]: np.uint16}


def decode_pages(
    data: NDArray[np.uint8], shape: tuple[int, int, int], kind: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns the keys and the values of consecutive pages, each (layers, kv_heads, tokens, head_dim).

    Args:
        data: (pages, bytes of a page), from `NativeBackend.read_pages`.
        shape: layers, kv_heads, head_dim.
        kind: the type of the cache.

    Raises:
        BackendError: the cache is quantised.
    """
    if kind not in _NUMBERS:
        raise BackendError("the keys and values of a q8_0 cache are approximations, which are not returned")
    pages, (layers, heads, width) = len(data), shape
    numbers = data.view(_NUMBERS[kind])
    split = layers * heads * width * PAGE
    if kind == CACHE_TYPES["bf16"]:  # pairs of rows are interleaved
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        keys = numbers[:, :split].reshape(pages, layers, heads, width // 2, PAGE, 2).transpose(1, 2, 0, 4, 3, 5)
        values = numbers[:, split:].reshape(pages, layers, heads, PAGE // 2, -1, 2).transpose(1, 2, 0, 3, 5, 4)
    else:
        keys = numbers[:, :split].reshape(pages, layers, heads, width, PAGE).transpose(1, 2, 0, 4, 3)
        values = numbers[:, split:].reshape(pages, layers, heads, PAGE, -1).transpose(1, 2, 0, 3, 4)
    rows = (layers, heads, pages * PAGE)
    return keys.reshape(*rows, width).astype(np.float32), values.reshape(*rows, -1)[..., :width].astype(np.float32)
