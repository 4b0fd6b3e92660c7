"""Edits of a model: fewer key-value heads, another vocabulary size, an additional end token for chats.

Heads are pooled as Hugging Face's configuration page describes for `num_key_value_heads`: "each group key and value
head should be constructed by meanpooling all the original heads within that group" (Ainslie et al., arXiv:2305.13245).
A pooled model needs training to recover its quality.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint import Checkpoint, Weight
from puna.checkpoint.names import EMBEDDING, HEAD
from puna.checkpoint.weight import Bytes, Index
from puna.config import GenerationConfig, LlamaConfig
from puna.convert.lazy_rows import LazyRows, as_floats, pack, pieces, values
from puna.convert.options import Options
from puna.convert.tokenizer_files import check_instruct, check_rows
from puna.errors import CheckpointError
from puna.lazy import cached_property

_KEY_VALUE = re.compile(r"\.self_attn\.[kv]_proj\.(weight|bias)$")


@dataclass(frozen=True)
class PooledHeads(LazyRows):
    """Key or value heads of `width` rows, each the mean of `group` consecutive heads of the source."""

    width: int
    group: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape with 1/`group` of its rows."""
        return (self.source.shape[0] // self.group, *self.source.shape[1:])

    @property
    def row_memory(self) -> int:
        """The memory of the rows that are averaged, and three float64 arrays: a row, the sum and the mean."""
        return self.group * self.source.row_memory + 3 * 8 * math.prod(self.shape[1:])

    def take(self, rows: Index) -> Bytes:
        """Returns the given rows, averaged in float64 and rounded to the source's type."""
        head, row = rows // self.width, rows % self.width
        total = sum(
            values(self.source, (head * self.group + member) * self.width + row).astype(np.float64)
            for member in range(self.group)
        )
        mean: NDArray[np.float32] = (np.asarray(total) / self.group).astype(np.float32)
        return pack(mean, self.format).reshape(len(rows), -1)


@dataclass(frozen=True)
class ResizedVocabulary(LazyRows):
    """A matrix of `count` vocabulary rows: the source's first rows, then copies of the mean of all its rows."""

    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The source's shape with `count` rows."""
        return (self.count, *self.source.shape[1:])

    @cached_property
    def _mean(self) -> Bytes:
        rows, columns = self.source.shape
        total = np.zeros(columns, np.float64)
        for piece in pieces(self.source):
            total += self.format.decode(piece.reshape(-1)).reshape(-1, columns).sum(axis=0, dtype=np.float64)
        return pack((total / rows).astype(np.float32), self.format).reshape(1, -1)

    def take(self, rows: Index) -> Bytes:
        """Returns the given rows."""
        stored = rows < self.source.shape[0]
        if stored.all():
            return self.source.take(rows)
        result = np.repeat(self._mean, len(rows), axis=0)
        if stored.any():
            result[stored] = self.source.take(rows[stored])
        return result


def edit_checkpoint(checkpoint: Checkpoint, options: Options) -> Checkpoint:
    """Returns the checkpoint with the edits that `options` request; edited weights are computed when they are read.

    Raises:
        CheckpointError: the model cannot have that many heads or vocabulary rows.
        TokenizerError: the tokenizer needs more rows, or cannot be given Llama 3's chat template.
    """
    if options.kv_heads is not None:
        checkpoint = pool_heads(checkpoint, options.kv_heads)
    if options.vocab_size is not None or options.pad_vocab_to is not None:
        checkpoint = resize_vocabulary(checkpoint, options.vocab_size, options.pad_vocab_to)
    return add_end_of_turn(checkpoint, options.layout) if options.instruct else checkpoint


def pool_heads(checkpoint: Checkpoint, heads: int) -> Checkpoint:
    """Returns the checkpoint with `heads` key-value heads; `heads` must divide the present number."""
    config, count = checkpoint.config, checkpoint.config.num_key_value_heads
    if not 0 < heads <= count or count % heads:
        raise CheckpointError(f"{heads} key-value heads cannot be pooled from {count}; give a divisor of {count}")
    if heads == count:
        return checkpoint
    tensors = {
        name: Weight(name, (PooledHeads(as_floats(weight), config.head_dim, count // heads),))
        if _KEY_VALUE.search(name)
        else weight
        for name, weight in checkpoint.tensors.items()
    }
    config = LlamaConfig.from_dict(config.to_dict(), num_key_value_heads=heads)
    return replace(checkpoint, config=config, tensors=tensors)


def resize_vocabulary(checkpoint: Checkpoint, size: int | None, multiple: int | None) -> Checkpoint:
    """Returns the checkpoint with `size` vocabulary rows (None keeps the number), rounded up to a `multiple`.

    Raises:
        CheckpointError: a size or multiple is out of range, or a special token would lose its row.
        TokenizerError: the tokenizer has more tokens than the new number of rows.
    """
    for name, value in (("vocab_size", size), ("pad_vocab_to", multiple)):
        if value is not None and not 0 < value < 2**31:
            raise CheckpointError(f"{name} is {value}; it must be an integer from 1 to {2**31 - 1}")
    config, count = checkpoint.config, checkpoint.config.vocab_size
    rows = size or count
    rows = -(-rows // (multiple or 1)) * (multiple or 1)
    if rows == count:
        return checkpoint
    minimum = max(_special_ids(checkpoint), default=-1) + 1
    if rows < minimum:
        raise CheckpointError(f"a vocabulary of {rows} rows loses special token {minimum - 1}; give at least {minimum}")
    tensors = {
        name: Weight(name, (ResizedVocabulary(as_floats(weight), rows),)) if name in (EMBEDDING, HEAD) else weight
        for name, weight in checkpoint.tensors.items()
    }
    if rows < count:
        check_rows(checkpoint.tokenizer, rows)
    config = LlamaConfig.from_dict(config.to_dict(), vocab_size=rows)
    config.validate()
    return replace(checkpoint, config=config, tensors=tensors)


def _special_ids(checkpoint: Checkpoint) -> list[int]:
    """Returns the ids of the special tokens in the model's configuration and the generation configuration."""
    config, generation = checkpoint.config, checkpoint.generation
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ids = [config.bos_token_id, config.pad_token_id, *eos]
    ids += [generation.bos_token_id, generation.pad_token_id, *generation.eos_token_ids]
    return [index for index in ids if index is not None]


def add_end_of_turn(checkpoint: Checkpoint, layout: str) -> Checkpoint:
    """Returns the checkpoint with the end-of-turn token of Llama 3's chat template among its EOS tokens."""
    generation, end_of_turn = checkpoint.generation, check_instruct(checkpoint.tokenizer, layout)
    if end_of_turn in generation.eos_token_ids:
        return checkpoint
    eos = [*generation.eos_token_ids, end_of_turn]
    # The new ids differ from those of the model's configuration, which readers would otherwise use again.
    edited = GenerationConfig.from_stored(generation.to_diff_dict(), eos_token_id=eos, _from_model_config=False)
    return replace(checkpoint, generation_config=edited)
