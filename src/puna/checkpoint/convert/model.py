"""The model to be written: opened, changed as asked, and what its numbers are to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from puna.checkpoint.convert.rows import Cast, Rows, pack, values
from puna.checkpoint.convert.surgery import pool_heads, resize_vocabulary
from puna.checkpoint.loading import Checkpoint, Kind
from puna.checkpoint.names import Head
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat

_PLAIN = {
    spelling.lower(): form
    for form in FORMATS.values()
    if form.pack is not None
    for spelling in (form.name, str(form.torch), f"torch.{form.torch}")
}


@dataclass(frozen=True)
class Model:
    """A model on its way: `tensors` under Hugging Face's names, in their order of rows, as they were or changed."""

    path: Path
    kind: Kind
    files: tuple[Path, ...]
    config: LlamaConfig
    generation_config: GenerationConfig | None
    tensors: Mapping[str, Rows]
    head: Head
    tokenizer: Path


def opened(checkpoint: Checkpoint) -> Model:
    """The model of an open checkpoint, unchanged."""
    return Model(
        checkpoint.path,
        checkpoint.kind,
        checkpoint.files,
        checkpoint.config,
        checkpoint.generation_config,
        dict(checkpoint.tensors),
        checkpoint.head,
        checkpoint.tokenizer,
    )


def changed(model: Model, kv_heads: int | None, vocab_size: int | None, pad_vocab_to: int | None) -> Model:
    """The model with other numbers of key-value heads and vocabulary rows, where they are given."""
    config, tensors = model.config, dict(model.tensors)
    if kv_heads is not None:
        config, tensors = pool_heads(config, tensors, kv_heads)
    if vocab_size is not None or pad_vocab_to is not None:
        config, tensors = resize_vocabulary(config, tensors, vocab_size, pad_vocab_to)
    return replace(model, config=config, tensors=tensors)


def find_dtype(name: str | None) -> BlockFormat | None:
    """The plain type called `name` ("bfloat16", "bf16", ...), in any case of letters; None for None.

    Raises:
        CheckpointError: there is none.
    """
    if name is None:
        return None
    form = _PLAIN.get(str(name).lower())
    if form is None:
        raise CheckpointError(f"dtype is {name!r}; it must be float32, float16 or bfloat16")
    return form


def main_type(model: Model, dtype: BlockFormat | None) -> BlockFormat:
    """The plain type of the model's numbers: as asked, as in the source, or float32, which holds what blocks mean."""
    if dtype is not None:
        return dtype
    if any(rows.format.values > 1 for rows in model.tensors.values()):
        return FORMATS["f32"]
    return model.tensors["model.embed_tokens.weight"].format


def plain(rows: Rows, main: BlockFormat, asked: bool) -> Rows:
    """A tensor as plain numbers: of type `main` where that was asked for, where they were blocks, or loses nothing."""
    if rows.format == main:
        return rows
    if asked or rows.format.values > 1 or (len(rows.shape) == 1 and _keeps_values(rows, main)):
        return Cast(rows, main)
    return rows


def _keeps_values(rows: Rows, to: BlockFormat) -> bool:
    """Whether a vector has the same values in another type: GGUF files hold norms as float32 whatever they were."""
    numbers = values(rows, np.arange(rows.shape[0])).reshape(-1)
    return bool(np.array_equal(to.decode(pack(numbers, to).reshape(-1)), numbers, equal_nan=True))
