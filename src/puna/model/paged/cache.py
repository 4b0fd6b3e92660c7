"""`PagedCache`: the keys and values of `TorchBackend`, stored in the pages that the engine assigns to sequences.

Legend: L layers, P pages with memory, K kv heads, E head width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from puna.backend import PAGE
from puna.config import LlamaConfig
from puna.model.attention import Pair
from puna.native.memory import CACHE_SHARE, cache_pages


class PagedCache:
    """Keys and values of all pages.

    Its tensors can only be changed in inference mode, because they may have been created in it.

    On the CPU, memory grows when a page beyond its end is first used. On a GPU, it is allocated at once, because CUDA
    graphs contain its addresses; one more page there receives the keys of rows that only fill up a graph's batch.

    Args:
        pages: number of pages requested.

    Attributes:
        limit: number of the requested pages that fit in the device's memory.
        page_bytes: bytes of a page in all layers.
        layers: per layer keys and values, each (P * PAGE, K, E): row page * PAGE + i holds token i of the page.
    """

    def __init__(self, config: LlamaConfig, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (config.num_key_value_heads, config.head_dim)
        self.layers: list[Pair] = [
            (torch.empty((0, *self._shape), dtype=dtype, device=device),) * 2 for _ in range(config.num_hidden_layers)
        ]
        self.page_bytes = 2 * config.num_hidden_layers * PAGE * self._shape[0] * self._shape[1] * dtype.itemsize
        self.limit = _fitting(pages, self.page_bytes, device)
        if device.type == "cuda":
            self._resize((self.limit + 1) * PAGE)

    def reserve(self, pages: int) -> None:
        """Allocates memory for `pages` pages. The memory is doubled at least, so that it is seldom copied."""
        shortest = min(
            len(part) for pair in self.layers for part in pair
        )  # an interrupt may have left some layers short
        if shortest < pages * PAGE:
            self._resize(min(max(pages * PAGE, 2 * shortest), self.limit * PAGE))

    @torch.inference_mode()
    def read(self, pages: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the contents of pages, (n, page_bytes)."""
        self._reserve_all(pages)
        rows = _token_rows(pages)
        parts = [part[rows.to(part.device)].view(len(pages), -1) for pair in self.layers for part in pair]
        data: NDArray[np.uint8] = torch.cat(parts, dim=1).view(torch.uint8).cpu().numpy()
        return data

    @torch.inference_mode()
    def write(self, pages: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Restores the contents of pages that `read` has returned."""
        self._reserve_all(pages)
        rows = _token_rows(pages)
        parts = torch.from_numpy(np.ascontiguousarray(data)).chunk(2 * len(self.layers), dim=1)
        stored = [part for pair in self.layers for part in pair]
        for part, values in zip(stored, parts, strict=True):
            part[rows.to(part.device)] = values.contiguous().view(part.dtype).view(-1, *self._shape).to(part.device)

    @torch.inference_mode()
    def fill(self, pages: Sequence[int], keys: NDArray[np.float32], values: NDArray[np.float32]) -> None:
        """Stores keys and values, (L, K, T, E), of the first T tokens of a sequence with these pages."""
        self._reserve_all(pages)
        rows = _token_rows(pages)[: keys.shape[2]]
        for pair, *new in zip(self.layers, keys, values, strict=True):
            for part, numbers in zip(pair, new, strict=True):
                part[rows.to(part.device)] = torch.from_numpy(numbers).transpose(0, 1).to(part.device, part.dtype)

    def _reserve_all(self, pages: Sequence[int]) -> None:
        self.reserve(max(pages, default=-1) + 1)

    def _resize(self, rows: int) -> None:
        for index, pair in enumerate(self.layers):
            keys, values = (torch.cat((part, part.new_empty((rows - len(part), *self._shape)))) for part in pair)
            self.layers[index] = keys, values


def _token_rows(pages: Sequence[int]) -> Tensor:
    """Returns the rows of all tokens of the pages."""
    return (torch.tensor(pages, dtype=torch.long)[:, None] * PAGE + torch.arange(PAGE)).flatten()


def _fitting(pages: int, page_bytes: int, device: torch.device) -> int:
    """Returns how many of the requested pages fit in the device's memory."""
    if device.type != "cuda":
        return cache_pages(0, pages, page_bytes)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(pages, int(free * CACHE_SHARE) // page_bytes - 1))
