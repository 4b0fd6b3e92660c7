"""The model to be written: opened, changed as asked, and what its numbers are to be."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from puna.checkpoint.loading import Checkpoint, Kind
from puna.checkpoint.names import EMBEDDING, Head
from puna.checkpoint.weight import Rows
from puna.config import GenerationConfig, LlamaConfig
from puna.convert.lazy_rows import Cast, pack, values
from puna.convert.surgery import pool_heads, resize_vocabulary
from puna.convert.tokenizer_files import check_instruct, check_rows
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.gguf import open_gguf

_PLAIN = {
    spelling.lower(): form
    for form in FORMATS.values()
    if form.pack is not None
    for spelling in (form.name, str(form.torch), f"torch.{form.torch}")
}

_CARRIED = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config"}
"""What of a generation configuration the other layouts hold too, or nobody needs."""


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

    @property
    def generation(self) -> GenerationConfig:
        """What generation obeys: the model's own settings, or what its configuration says."""
        return self.generation_config or GenerationConfig.from_model_config(self.config)

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text, generation's before the configuration's."""
        own: int | None = self.generation.bos_token_id
        configured: int | None = self.config.bos_token_id
        return configured if own is None else own

    @property
    def pad_token_id(self) -> int | None:
        """The id that pads, likewise."""
        own: int | None = self.generation.pad_token_id
        configured: int | None = self.config.pad_token_id
        return configured if own is None else own

    @functools.cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What a GGUF file says; nothing for other layouts."""
        return open_gguf(self.path).metadata if self.kind == "gguf" else {}

    def generation_notes(self) -> list[str]:
        """For layouts that hold no settings of generation: which there are."""
        fields = {} if self.generation_config is None else self.generation_config.to_dict()
        lost = [f"{name} {value}" for name, value in fields.items() if name not in _CARRIED]
        return [f"generation_config's {', '.join(lost)} have no place there"] if lost else []


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
    """The model with other numbers of key-value heads and vocabulary rows, where they are given.

    Raises:
        CheckpointError: it cannot have so many.
        TokenizerError: its tokenizer needs more rows.
    """
    config, tensors = model.config, dict(model.tensors)
    if kv_heads is not None:
        config, tensors = pool_heads(config, tensors, kv_heads)
    if vocab_size is not None or pad_vocab_to is not None:
        before = config.vocab_size
        config, tensors = resize_vocabulary(config, tensors, vocab_size, pad_vocab_to, model.generation)
        if config.vocab_size < before:
            check_rows(model.tokenizer, config.vocab_size)
    return replace(model, config=config, tensors=tensors)


def chatting(model: Model, layout: str) -> Model:
    """The model with the end of a turn among what ends an answer, as Llama 3's chat template needs it.

    Raises:
        TokenizerError: its tokenizer cannot be given that template.
    """
    ends, turn = model.generation.eos_token_ids, check_instruct(model.tokenizer, layout)
    if turn in ends:
        return model
    return replace(
        model,
        generation_config=GenerationConfig.from_dict(model.generation.to_dict(), eos_token_id=[*ends, turn]),
    )


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
    return model.tensors[EMBEDDING].format


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
