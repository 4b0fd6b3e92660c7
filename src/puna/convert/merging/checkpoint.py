"""`merge_checkpoint`: a checkpoint whose tensors include the changes of an adapter, computed when they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from puna.adapters import Adapter
from puna.adapters.changes import change_bias, change_rows, changed_column_norms
from puna.checkpoint import Checkpoint, Weight
from puna.checkpoint.names import EMBEDDING, HEAD, SCORE, Head, expected_tensors
from puna.checkpoint.weight import Bytes, Index, RowSource
from puna.config import LlamaConfig
from puna.convert.lazy_rows import Cast, LazyRows, Quantized, as_floats, rows_per_piece, values
from puna.convert.mixes import MIXES
from puna.errors import CheckpointError
from puna.files import has_file
from puna.formats.blocks import FORMATS, BlockFormat, StoredTensor
from puna.lazy import cached_property

Kept = Literal["formats", "plain types", "nothing"]
"""Which changed tensors get the format of the base model's tensor: all, or plain ones, or none; others are float32."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class MergedRows(LazyRows):
    """The rows of a matrix with the changes of an adapter, in float32. `key` is the matrix's name in the adapter."""

    adapter: Adapter
    key: str

    @property
    def format(self) -> BlockFormat:
        """float32."""
        return FORMATS["f32"]

    @property
    def row_memory(self) -> int:
        """The source's memory, four float32 arrays, and two float64 arrays of the low-rank change."""
        return self.source.row_memory + (4 * 4 + 2 * 8) * math.prod(self.shape[1:])

    @cached_property
    def _column_norms(self) -> NDArray[np.float32] | None:
        change = self.adapter.low_rank.get(self.key)
        if change is None or change.magnitude is None or self.key != EMBEDDING:
            return None
        step, count = rows_per_piece(self), self.shape[0]
        pieces = (np.arange(start, min(start + step, count)) for start in range(0, count, step))
        return changed_column_norms(self.adapter, self.key, ((values(self.source, rows), rows) for rows in pieces))

    def take(self, rows: Index) -> Bytes:
        """Returns the changed rows."""
        changed = change_rows(self.adapter, self.key, values(self.source, rows), rows, self._column_norms)
        return np.ascontiguousarray(changed, np.float32).view(np.uint8)


def merge_checkpoint(checkpoint: Checkpoint, adapter: Adapter, keep: Kept) -> Checkpoint:
    """Returns the checkpoint with the adapter's changes.

    Raises:
        CheckpointError: the adapter cannot be expressed as weights of a LLaMA, or puna does not quantise to a format.
    """
    if adapter.virtual_tokens:
        raise CheckpointError(
            f"{adapter.path}: the adapter is a {adapter.kind}, which precedes every text and is not a change of "
            "weights; it cannot be merged"
        )
    if adapter.bottlenecks:
        raise CheckpointError(
            f"{adapter.path}: the adapter has bottlenecks, which are additional layers and not a change of weights; it "
            "cannot be merged"
        )
    head = _head(checkpoint, adapter)
    config = _merged_config(checkpoint, adapter)
    merged = {
        name: _bias(checkpoint, adapter, name, shape, keep)
        if name.endswith(".bias")
        else _tensor(checkpoint, adapter, name, keep)
        for name, shape in expected_tensors(config, head)
    }
    resized = config.vocab_size != checkpoint.config.vocab_size
    has_tokenizer = any(has_file(adapter.path / name, CheckpointError) for name in _TOKENIZERS)
    notes = [*checkpoint.notes, *adapter.notes]
    if has_tokenizer and not resized:
        notes.append(f"the tokenizer in {adapter.path} is not used, since the vocabulary is that of the base model")
    return replace(
        checkpoint, config=config, head=head, tensors=merged, notes=tuple(notes),
        files=(*checkpoint.files, *_adapter_files(adapter)),
        tokenizer=adapter.path if resized and has_tokenizer else checkpoint.tokenizer,
    )  # fmt: skip


def changed_tensors(adapter: Adapter) -> set[str]:
    """Returns the names of the tensors that the adapter changes, without biases of `lora_bias`."""
    return {*adapter.low_rank, *adapter.scalings, *adapter.token_rows, *adapter.replaced}


def _head(checkpoint: Checkpoint, adapter: Adapter) -> Head:
    """Returns the head of the merged model; raises CheckpointError if the adapter needs another one."""
    own = adapter.head == "classification" and SCORE in adapter.replaced
    needed = adapter.head if adapter.head == "classification" or HEAD in changed_tensors(adapter) else None
    if needed not in (None, checkpoint.head) and not own:
        raise CheckpointError(
            f"{adapter.path}: the adapter was trained with the head {needed!r}; {checkpoint.path} has the head "
            f"{checkpoint.head!r}. Use the adapter's base model"
        )
    return needed or checkpoint.head


def _adapter_files(adapter: Adapter) -> list[Any]:
    return (
        sorted(path for path in adapter.path.iterdir() if path.is_file()) if adapter.path.is_dir() else [adapter.path]
    )


def _merged_config(checkpoint: Checkpoint, adapter: Adapter) -> LlamaConfig:
    """Returns the configuration with the biases that the adapter adds; untied if the adapter makes the head differ."""
    changes: dict[str, Any] = {}
    for weight, change in adapter.low_rank.items():
        if change.bias is None:
            continue
        if not weight.startswith("model.layers."):
            raise CheckpointError(f"{adapter.path}: lora_bias gives {weight!r} a bias, which a LLaMA cannot have there")
        changes["attention_bias" if ".self_attn." in weight else "mlp_bias"] = True
    if adapter.config.tie_word_embeddings and adapter.head == "lm" and not _keeps_tie(adapter):
        changes["tie_word_embeddings"] = False
    fields = adapter.config.to_dict()
    return LlamaConfig.from_dict(fields, **changes) if changes else adapter.config


def _keeps_tie(adapter: Adapter) -> bool:
    """Whether the adapter changes the embedding and the head in the same way."""
    tables: tuple[tuple[Mapping[str, Any], Callable[[Any], list[Any]]], ...] = (
        (adapter.replaced, lambda item: [item.data]),
        (adapter.token_rows, lambda item: [item.ids, item.values]),
        (adapter.low_rank, lambda item: [item.a * np.float32(item.scale), item.b]),
    )
    if any(adapter.low_rank[name].magnitude is not None for name in (EMBEDDING, HEAD) if name in adapter.low_rank):
        return False
    for table, arrays in tables:
        embedding, head = table.get(EMBEDDING), table.get(HEAD)
        if embedding is head:
            continue
        if embedding is None or head is None:
            return False
        pairs = zip(arrays(embedding), arrays(head), strict=True)
        if not all(np.array_equal(one, other) for one, other in pairs):
            return False
    return HEAD not in adapter.scalings


def _tensor(checkpoint: Checkpoint, adapter: Adapter, name: str, keep: Kept) -> Weight:
    """Returns a matrix or norm with its changes."""
    base = checkpoint.tensors.get(name)
    if base is None and name == HEAD and name not in adapter.replaced:  # the model ties it to the embedding
        base = checkpoint.tensors[EMBEDDING]
    source: RowSource | None = adapter.replaced.get(name, base)
    assert source is not None, "the adapter contains a head that the base model lacks"
    if any(name in table for table in (adapter.low_rank, adapter.scalings, adapter.token_rows)):
        source = MergedRows(source, adapter, name)
    if source is base:
        return base
    return Weight(name, (source if base is None else _in_format(name, source, base.format, keep),))


def _in_format(name: str, source: RowSource, form: BlockFormat, keep: Kept) -> RowSource:
    """Returns the source in the base model's format `form`, if it is kept."""
    if source.format == form or keep == "nothing" or (form.values > 1 and keep == "plain types"):
        return source
    if form.values == 1:
        return Cast(source, form)
    if form.name.lower() not in MIXES:
        written = ", ".join(mix.name for mix in MIXES.values() if mix.name == mix.main and FORMATS[mix.main].values > 1)
        raise CheckpointError(
            f"{name} is stored as {form.name}, which puna reads but does not write; quantize to another format "
            f"({written}), or choose a dtype"
        )
    return Quantized(as_floats(source), form)


def _bias(checkpoint: Checkpoint, adapter: Adapter, name: str, shape: tuple[int, ...], keep: Kept) -> Weight:
    """Returns a bias with its changes: the model's, the one that replaces it, or zeros if the model has none."""
    base, source = checkpoint.tensors.get(name), adapter.replaced.get(name)
    values_of = source or base
    old = None if values_of is None else values(values_of, np.arange(shape[0])).reshape(-1)
    new = change_bias(adapter, name.removesuffix("bias") + "weight", old)
    if base is not None and new is old and source is None:
        return base
    array = np.zeros(shape, np.float32) if new is None else np.ascontiguousarray(new, np.float32)
    stored = StoredTensor(name, shape, FORMATS["f32"], array.view(np.uint8))
    return Weight(name, (stored if base is None else _in_format(name, stored, base.format, keep),))
