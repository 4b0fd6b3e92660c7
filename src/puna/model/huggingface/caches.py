"""`DynamicCache` and `StaticCache` of transformers, for code that creates its own cache; only for compatibility.

The models return the immutable `KVCache`. A cache of this module is changed in place: a call that receives one extends
it and returns it.

Legend: B batch, K kv heads, S tokens, E head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError, show
from puna.model.checks import check_layers


@dataclass
class CacheLayer:
    """Keys and values of one layer, each (B, K, S, E)."""

    keys: Tensor
    values: Tensor


class DynamicCache:
    """Keys and values of each layer, which grow with each call.

    Args:
        ddp_cache_data: pairs (keys, values), each (B, K, S, E), one for each layer; by default no tokens are cached.
        config: has no effect; accepted because transformers 5 uses it for other models.
        offloading: must be False.
    """

    is_compileable = False

    def __init__(
        self, ddp_cache_data: Any = None, config: Any = None, offloading: bool = False, **options: Any
    ) -> None:
        if offloading or any(value for value in options.values()):
            raise RequestError(
                f"the cache was created with offloading={offloading} and {options}; puna keeps caches on the device of "
                "the model, and has no other options"
            )
        pairs = list(ddp_cache_data or ())
        check_layers(pairs)
        self.layers = [CacheLayer(keys, values) for keys, values in pairs]

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[Sequence[Tensor]] | None = None) -> DynamicCache:
        """Returns a cache of the same keys and values."""
        return DynamicCache(past_key_values)

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Returns a pair (keys, values) for each layer."""
        return tuple((layer.keys, layer.values) for layer in self.layers)

    @property
    def key_cache(self) -> list[Tensor]:
        """The keys of each layer, the form of transformers 4."""
        return [layer.keys for layer in self.layers]

    @property
    def value_cache(self) -> list[Tensor]:
        """The values of each layer, the form of transformers 4."""
        return [layer.values for layer in self.layers]

    def __len__(self) -> int:
        """Number of layers with cached tokens."""
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.to_legacy_cache())

    def __getitem__(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        return self.to_legacy_cache()[layer_idx]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} layers, {self.get_seq_length()} tokens)"

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Appends keys and values, each (B, K, new, E), to a layer; returns all its keys and values."""
        if layer_idx > len(self.layers):
            raise RequestError(f"layer_idx is {layer_idx}; the next layer of the cache is {len(self.layers)}")
        if layer_idx == len(self.layers):
            self.layers.append(CacheLayer(key_states, value_states))
        else:
            layer = self.layers[layer_idx]
            layer.keys = torch.cat((layer.keys, key_states), dim=-2)
            layer.values = torch.cat((layer.values, value_states), dim=-2)
        return self[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of cached tokens."""
        return self.layers[layer_idx].keys.shape[-2] if layer_idx < len(self.layers) else 0

    @property
    def seen_tokens(self) -> int:
        """The number of cached tokens."""
        return self.get_seq_length()

    @property
    def is_initialized(self) -> bool:
        """Whether tokens are cached."""
        return bool(self.layers)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Returns the maximum number of tokens; -1 without a maximum."""
        return -1

    def get_max_length(self) -> int | None:
        """Returns the maximum number of tokens; None without a maximum."""
        return None if self.get_max_cache_shape() < 0 else self.get_max_cache_shape()

    def crop(self, max_length: int) -> None:
        """Keeps the first `max_length` tokens; a negative number removes that many tokens from the end."""
        length = self.get_seq_length() + max_length if max_length < 0 else max_length
        self._replace(lambda tensor: tensor[..., : max(length, 0), :])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row i by row `beam_idx[i]`."""
        self._replace(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        self._replace(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`."""
        self._replace(lambda tensor: tensor[indices, ...])

    def reset(self) -> None:
        """Removes all tokens."""
        self.layers = []

    def _replace(self, change: Any) -> None:
        for layer in self.layers:
            layer.keys, layer.values = change(layer.keys), change(layer.values)


Cache = DynamicCache
"""The base class of caches in transformers."""


class StaticCache(DynamicCache):
    """A cache of limited length. In transformers it allocates its memory at once, which compiled models need.

    Here the memory grows with the text, and more tokens than `max_cache_len` are an error.

    Args:
        config, max_batch_size, device, dtype, options: accepted, without effect: the first call determines them.
        max_cache_len: maximum number of tokens.
    """

    def __init__(
        self,
        config: Any = None,
        max_batch_size: int | None = None,
        max_cache_len: int | None = None,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if max_cache_len is None:  # transformers 5 has no max_batch_size
            max_batch_size, max_cache_len = None, max_batch_size
        if isinstance(max_cache_len, bool) or not isinstance(max_cache_len, int) or max_cache_len < 1:
            raise RequestError(f"max_cache_len is {show(max_cache_len)}; it must be the maximum number of tokens")
        self.max_cache_len = max_cache_len
        self.max_batch_size = max_batch_size

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """See `DynamicCache.update`; raises RequestError if there are more than `max_cache_len` tokens."""
        length = self.get_seq_length(layer_idx) + key_states.shape[-2]
        if length > self.max_cache_len:
            raise RequestError(
                f"the text has {length} tokens, and the cache max_cache_len={self.max_cache_len}; raise it"
            )
        return super().update(key_states, value_states, layer_idx, cache_kwargs)

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Returns the maximum number of tokens."""
        return self.max_cache_len
