"""`KVCache`: the keys and values of the tokens already seen, an argument of forward.

It is a value: forward returns a longer cache and leaves the one it was given as it was, so one prefix can be continued
many times. It is also the tuple of tuples of Hugging Face's page: `cache[layer]` is `(keys, values)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from puna.config import LlamaConfig
from puna.errors import RequestError
from puna.model.trees import register_tree

LegacyCache = Sequence[Sequence[Tensor]]
"""The page's form: per layer (keys, values), each (batch, kv heads, tokens, head_dim)."""


class KVCache(tuple[tuple[Tensor, Tensor], ...]):
    """Per layer `(keys, values)`, each (batch, kv heads, tokens, head_dim); an empty cache has no layers.

    Keys are stored after their rotary embedding, except for rope types whose frequencies depend on the length
    (dynamic, longrope): those store keys before it, and the positions of the tokens beside them.

    Args:
        layers: per layer (keys, values).
        positions: (batch, tokens) of the cached tokens; needed only by dynamic and longrope, where None means 0, 1, ...
            and is refused together with padding.
    """

    positions: Tensor | None

    def __new__(cls, layers: Iterable[Sequence[Tensor]] = (), positions: Tensor | None = None) -> KVCache:  # noqa: D102
        cache = super().__new__(cls, tuple((keys, values) for keys, values in layers))
        cache.positions = positions
        return cache

    @classmethod
    def read(cls, past: LegacyCache | None, config: LlamaConfig, batch: int) -> KVCache:
        """Takes what a caller may pass for `past_key_values`; None is an empty cache.

        Raises:
            RequestError: when it does not fit the model or the batch.
        """
        if past is None:
            return cls()
        if not isinstance(past, Sequence):
            raise RequestError(
                f"past_key_values is a {type(past).__name__}; it must be the KVCache of an earlier call, or per layer "
                "(keys, values)"
            )
        if not past:
            return cls()
        cache = past if isinstance(past, KVCache) else cls(past)
        expected = (batch, config.num_key_value_heads, cache.length, config.head_dim)
        if len(cache) != config.num_hidden_layers or any(tensor.shape != expected for pair in cache for tensor in pair):
            raise RequestError(
                f"past_key_values has {len(cache)} layers, the first of shape {tuple(cache[0][0].shape)}; this model "
                f"and batch need {config.num_hidden_layers} layers of (batch, kv heads, tokens, head_dim) = {expected}"
            )
        return cache

    @property
    def length(self) -> int:
        """Tokens cached."""
        return self[0][0].shape[2] if self else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens cached, under the name later releases of the reference use."""
        return self[layer_idx][0].shape[2] if self else 0

    def check_positions(self, new: Tensor, attention_mask: Tensor | None) -> None:
        """For rope types whose cached keys still need their positions: a cache without any must be free of padding.

        Args:
            new: (batch, tokens), the positions of the new tokens.
            attention_mask: of forward; with four dimensions it does not tell padding.

        Raises:
            RequestError: when the positions are lost and are not 0, 1, ...
        """
        if not self or self.positions is not None:
            return
        padded = attention_mask is not None and attention_mask.dim() == 2 and not attention_mask[:, : self.length].all()
        if padded or (new[:, 0] != self.length).any():
            raise RequestError(
                f"past_key_values has lost the positions of its {self.length} tokens, which this rope_type needs and "
                "which padding or position_ids have moved; pass the KVCache that forward returned, not a tuple, or "
                "KVCache(layers, positions)"
            )

    def token_positions(self, new: Tensor) -> Tensor:
        """Positions (batch, cached tokens), in a batch like `new`, (batch, tokens)."""
        if self.positions is not None:
            return self.positions
        return torch.arange(self.length, device=new.device).expand(new.shape[0], self.length)

    def reorder(self, rows: Tensor) -> KVCache:
        """The cache whose row i is this one's row `rows[i]`; rows may repeat."""
        layers = [
            (keys.index_select(0, rows.to(keys.device)), values.index_select(0, rows.to(values.device)))
            for keys, values in self
        ]
        positions = None if self.positions is None else self.positions.index_select(0, rows.to(self.positions.device))
        return KVCache(layers, positions)

    def crop(self, length: int) -> KVCache:
        """The first `length` tokens of this cache."""
        layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in self]
        return KVCache(layers, None if self.positions is None else self.positions[:, :length])


def _branches(cache: KVCache) -> dict[str, Any]:
    positions = {} if cache.positions is None else {"positions": cache.positions}
    return {"layers": tuple(cache), **positions}


register_tree(KVCache, _branches, lambda parts: KVCache(**parts))


def extend(past: tuple[Tensor, Tensor] | None, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Appends a layer's new keys and values, (B, K, T, E), to its cached ones.

    A copy each time: 2 x cache bytes per decoded token, small beside the weights read, and open to gradients.
    """
    if past is None:
        return k, v
    return torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
