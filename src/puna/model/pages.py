"""`PagedCache`: the keys and values of `TorchBackend`, stored in the pages that the engine assigns to sequences.

Legend: P pages with memory, K kv heads, E head width, S tokens before a chunk, T tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from puna.backend import PAGE, Chunk
from puna.config import LlamaConfig
from puna.model.cache import KVCache
from puna.native.memory import CACHE_SHARE, cache_pages


class PagedCache:
    """Keys and values of all pages. Memory grows when a page beyond its end is first written.

    Args:
        pages: number of pages requested.

    Attributes:
        limit: number of the requested pages that fit in the device's memory.
    """

    def __init__(self, config: LlamaConfig, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (0, config.num_key_value_heads, config.head_dim)
        # Per layer keys and values, each (P * PAGE, K, E): row page * PAGE + i holds token i of the page.
        self._layers = [
            [torch.empty(shape, dtype=dtype, device=device) for _ in ("keys", "values")]
            for _ in range(config.num_hidden_layers)
        ]
        self._device = device
        page_bytes = 2 * config.num_hidden_layers * shape[1] * shape[2] * dtype.itemsize * PAGE
        self.limit = _fitting(pages, page_bytes, device)

    def read(self, chunk: Chunk) -> KVCache:
        """Returns the keys and values of the positions before the chunk, each (1, K, S, E)."""
        if not chunk.start:
            return KVCache()
        rows = self._rows(chunk.pages, 0, chunk.start)
        return KVCache([[stored[rows].transpose(0, 1)[None] for stored in layer] for layer in self._layers])

    def write(self, chunk: Chunk, cache: KVCache) -> None:
        """Stores the keys and values of the chunk's tokens, which are the last ones of `cache`, (1, K, S + T, E)."""
        self._grow(max(chunk.pages) + 1)
        rows = self._rows(chunk.pages, chunk.start, chunk.start + len(chunk.tokens))
        for layer, pair in zip(self._layers, cache, strict=True):
            for stored, tensor in zip(layer, pair, strict=True):
                stored[rows] = tensor[0, :, chunk.start :].transpose(0, 1)  # (T, K, E)

    def _rows(self, pages: tuple[int, ...], start: int, end: int) -> Tensor:
        """Returns the rows of the positions from `start` to `end` - 1."""
        positions = torch.arange(start, end, device=self._device)
        return torch.tensor(pages, device=self._device)[positions // PAGE] * PAGE + positions % PAGE

    def _grow(self, pages: int) -> None:
        """Allocates memory for `pages` pages. The tensors are doubled at least, so that they are seldom copied."""
        for layer in self._layers:  # each tensor is checked, because an interrupt may have left some layers smaller
            for index, stored in enumerate(layer):
                if len(stored) < pages * PAGE:
                    rows = min(max(pages * PAGE, 2 * len(stored)), self.limit * PAGE)
                    layer[index] = torch.cat((stored, stored.new_empty((rows - len(stored), *stored.shape[1:]))))


def _fitting(pages: int, page_bytes: int, device: torch.device) -> int:
    """Returns how many of the requested pages fit in the device's memory."""
    if device.type != "cuda":
        return cache_pages(0, pages, page_bytes)
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(pages, int(free * CACHE_SHARE) // page_bytes))
