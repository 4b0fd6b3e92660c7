"""Reads and extends the cache objects of transformers (`DynamicCache`), which puna accepts but does not import.

This module exists only for compatibility: puna's own cache is the immutable `KVCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Layers = Sequence[Sequence[Tensor]]
"""Per layer (keys, values), each (B, kv heads, tokens, head width)."""


def read_layers(cache: Any) -> Any:
    """Returns the keys and values of a cache object of transformers; other values unchanged.

    An empty cache object has no layers. The layout differs between releases: 5.x and late 4.x have `layers`, earlier
    ones `key_cache` and `value_cache`.
    """
    if not is_foreign(cache):
        return cache
    length = int(cache.get_seq_length())
    if not length:
        return ()
    if hasattr(cache, "key_cache"):
        pairs = zip(cache.key_cache, cache.value_cache, strict=True)
    else:
        pairs = zip((layer.keys for layer in cache.layers), (layer.values for layer in cache.layers), strict=True)
    return tuple((keys[:, :, :length], values[:, :, :length]) for keys, values in pairs)


def extend(cache: Any, layers: Layers) -> bool:
    """Appends the tokens of `layers` that a cache object of transformers does not have yet; returns whether it did.

    transformers' generate() changes its cache argument in place, and chat programs pass the same object again. A cache
    of fixed size, and one with other rows, are not changed.
    """
    cached = read_layers(cache)
    same_rows = not cached or cached[0][0].shape[0] == layers[0][0].shape[0]
    if getattr(cache, "is_compileable", False) or not same_rows:
        return False
    store(cache, layers)
    return True


def is_foreign(cache: object) -> bool:
    """Returns whether `cache` has the methods of a cache object of transformers."""
    return not isinstance(cache, tuple | list) and hasattr(cache, "get_seq_length") and hasattr(cache, "update")


def store(cache: Any, layers: Layers) -> Any:
    """Adds the tokens of `layers` that follow those in `cache`, an object of transformers; returns `cache`."""
    length = int(cache.get_seq_length())
    for index, (keys, values) in enumerate(layers):
        positions = torch.arange(length, keys.shape[2], device=keys.device)  # only StaticCache before 5.0 reads them
        cache.update(keys[:, :, length:], values[:, :, length:], index, {"cache_position": positions})
    return cache
