"""Models of another shape: fewer key-value heads, another number of vocabulary rows.

Heads are pooled as Hugging Face's configuration page describes for `num_key_value_heads`: "each group key and value
head should be constructed by meanpooling all the original heads within that group" (Ainslie et al., arXiv:2305.13245).
Such a model needs training before it is good again.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.names import EMBEDDING, HEAD
from puna.checkpoint.weight import Bytes, Index, Rows
from puna.config import GenerationConfig, LlamaConfig
from puna.convert.lazy_rows import Cast, Derived, pack, pieces, values
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS

_POOLED = re.compile(r"\.self_attn\.[kv]_proj\.(weight|bias)$")


@dataclass(frozen=True)
class Pooled(Derived):
    """Key or value heads `width` wide, each the mean of `group` consecutive heads of the source."""

    width: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        """A `group`th of the rows."""
        return (self.source.shape[0] // self.group, *self.source.shape[1:])

    @property
    def widest(self) -> int:
        """The rows that are averaged, and float64 values: of one of them, their sum and the mean."""
        return self.group * self.source.widest + 3 * 8 * math.prod(self.shape[1:])

    def take(self, rows: Index) -> Bytes:
        """Some rows, averaged in float32 and rounded to the source's type."""
        head, row = rows // self.width, rows % self.width
        total = sum(
            values(self.source, (head * self.group + member) * self.width + row).astype(np.float64)
            for member in range(self.group)
        )
        mean: NDArray[np.float32] = (np.asarray(total) / self.group).astype(np.float32)
        return pack(mean, self.format).reshape(len(rows), -1)


@dataclass(frozen=True)
class Resized(Derived):
    """A vocabulary of `count` rows: the source's first, then copies of their mean."""

    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """`count` rows."""
        return (self.count, *self.source.shape[1:])

    @functools.cached_property
    def _mean(self) -> Bytes:
        count, columns = self.source.shape
        total = np.zeros(columns, np.float64)
        for piece in pieces(self.source):
            total += self.format.decode(piece.reshape(-1)).reshape(-1, columns).sum(axis=0, dtype=np.float64)
        return pack((total / count).astype(np.float32), self.format).reshape(1, -1)

    def take(self, rows: Index) -> Bytes:
        """Some rows, old or new."""
        old = rows < self.source.shape[0]
        if old.all():
            return self.source.take(rows)
        found = np.repeat(self._mean, len(rows), axis=0)
        if old.any():
            found[old] = self.source.take(rows[old])
        return found


def pool_heads(config: LlamaConfig, tensors: Mapping[str, Rows], heads: int) -> tuple[LlamaConfig, dict[str, Rows]]:
    """The model with `heads` key-value heads.

    Raises:
        CheckpointError: they do not divide those it has.
    """
    before = config.num_key_value_heads
    if not 0 < heads <= before or before % heads:
        raise CheckpointError(f"{heads} key-value heads cannot be pooled from {before}; give a divisor of {before}")
    if heads == before:
        return config, dict(tensors)
    changed = {
        name: Pooled(as_floats(source), config.head_dim, before // heads) if _POOLED.search(name) else source
        for name, source in tensors.items()
    }
    return LlamaConfig.from_dict(config.to_dict(), num_key_value_heads=heads), changed


def resize_vocabulary(
    config: LlamaConfig,
    tensors: Mapping[str, Rows],
    size: int | None,
    multiple: int | None,
    generation: GenerationConfig,
) -> tuple[LlamaConfig, dict[str, Rows]]:
    """The model with `size` rows of vocabulary, rounded up to a `multiple`.

    Args:
        generation: whose special tokens keep their rows, as the configuration's do.

    Raises:
        CheckpointError: a size or multiple below 1, or so small that a special token loses its row.
    """
    for name, value in (("--vocab-size", size), ("--pad-vocab-to", multiple)):
        if value is not None and not 0 < value < 2**31:
            raise CheckpointError(f"{name} is {value}; a whole number, 1 or more, is needed")
    wanted = size or config.vocab_size
    wanted = -(-wanted // (multiple or 1)) * (multiple or 1)
    if wanted == config.vocab_size:
        return config, dict(tensors)
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ids = [config.bos_token_id, config.pad_token_id, *eos]
    ids += [generation.bos_token_id, generation.pad_token_id, *generation.eos_token_ids]
    needed = max((id for id in ids if id is not None), default=-1) + 1
    if wanted < needed:
        raise CheckpointError(f"a vocabulary of {wanted} rows loses special token {needed - 1}; {needed} are needed")
    changed = {
        name: Resized(as_floats(source), wanted) if name in (EMBEDDING, HEAD) else source
        for name, source in tensors.items()
    }
    return LlamaConfig.from_dict(config.to_dict(), vocab_size=wanted), changed


def as_floats(source: Rows) -> Rows:
    """The source itself where its values are plain numbers, else its values as float32."""
    return source if source.format.values == 1 else Cast(source, FORMATS["f32"])
