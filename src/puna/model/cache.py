"""`KVCache`: the keys and values of the tokens that the model has read; forward accepts and returns it.

Legend: B batch, T new tokens, S cached tokens, K kv heads, E head width.

A cache is immutable: forward returns a longer one, so that one prefix can be continued several times. It is a
tuple of tuples, as in Hugging Face's documentation: `cache[layer]` is `(keys, values)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.config.pruning import cached_heads
from puna.model.attention import Pair
from puna.model.checks import check_cache
from puna.model.foreign_cache import is_foreign, read_layers, store
from puna.model.pytree import register_node

LegacyCache = Sequence[Sequence[Tensor]]
"""The form in Hugging Face's documentation: per layer (keys, values), each (B, K, S, E).

A cache object of transformers is also accepted; see `foreign_cache.py`."""


class KVCache(tuple[Pair, ...]):
    """Per layer `(keys, values)`, each (B, K, S, E); an empty cache has no layers.

    Keys are stored rotated, except for rope types whose frequencies depend on the length (dynamic, longrope): for
    those, keys are stored unrotated, together with the positions of the tokens.

    Args:
        layers: per layer (keys, values).
        positions: (B, S), the positions of the cached tokens; only dynamic and longrope use them. None means 0, 1, ...,
            and is an error if there is padding.
    """

    positions: Tensor | None

    def __new__(cls, layers: Iterable[Sequence[Tensor]] = (), positions: Tensor | None = None) -> KVCache:  # noqa: D102
        cache = super().__new__(cls, tuple((keys, values) for keys, values in read_layers(layers)))
        cache.positions = positions
        return cache

    @classmethod
    def read(cls, past: LegacyCache | None, config: LlamaConfig, batch: int) -> KVCache:
        """Converts the argument `past_key_values` to a cache; None is an empty cache.

        Raises:
            RequestError: if the cache does not match the model or the batch.
        """
        past = read_layers(past)
        if past is None:
            return cls()
        check_cache(past, batch, cached_heads(config), config.head_dim)
        return cls.of(past)

    @classmethod
    def of(cls, layers: Iterable[Sequence[Tensor]]) -> KVCache:
        """Returns a cache unchanged, with its positions; converts other sequences of (keys, values)."""
        return layers if isinstance(layers, KVCache) else cls(layers)

    @property
    def length(self) -> int:
        """Number of cached tokens S."""
        return self[0][0].shape[2] if self else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of cached tokens; named as in later releases of transformers."""
        return self[layer_idx][0].shape[2] if self else 0

    def token_positions(self, new: Tensor) -> Tensor:
        """Returns the positions of the cached tokens, (B, S), on the device of `new`, (B, T)."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.length, device=new.device).expand(new.shape[0], self.length)

    def reorder(self, rows: Tensor) -> KVCache:
        """Returns a cache whose row i is row `rows[i]` of this one; rows may repeat."""
        layers = [
            (keys.index_select(0, rows.to(keys.device)), values.index_select(0, rows.to(values.device)))
            for keys, values in self
        ]
        positions = None if self.positions is None else self.positions.index_select(0, rows.to(self.positions.device))
        return KVCache(layers, positions)

    def crop(self, length: int) -> KVCache:
        """Returns a cache of the first `length` tokens."""
        layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self]
        return KVCache(layers, None if self.positions is None else self.positions[:, :length])


def returned(cache: KVCache | None, past: LegacyCache | None) -> KVCache | None:
    """Returns the cache after a call, which extends `past`; if that is a cache of transformers, stores it there."""
    return store(past, cache) if cache is not None and is_foreign(past) else cache


def cached_tokens(past: LegacyCache | None) -> int:
    """Returns the number of tokens in the argument `past_key_values`."""
    return 0 if past is None else KVCache(past).length


def _children(cache: KVCache) -> dict[str, Any]:
    positions = {} if cache.positions is None else {"positions": cache.positions}
    return {"layers": tuple(cache), **positions}


register_node(KVCache, _children, lambda children: KVCache(**children))
