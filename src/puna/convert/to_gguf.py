"""A GGUF file: metadata as llama.cpp's converter writes them, matrices as they were, cast or quantised."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors, from_hf, interleaved_rows
from puna.checkpoint.weight import Rows
from puna.config import LlamaConfig
from puna.convert.gguf_metadata import gguf_metadata, gguf_notes, rope_tensors
from puna.convert.lazy_rows import Cast, Quantized, Reordered
from puna.convert.mixes import MIXES, Mix, choose
from puna.convert.model import Model, main_type
from puna.convert.target import NewFile, Target, new_tensor
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.gguf_writer import write_gguf
from puna.formats.new_tensor import NewTensor

Importance = dict[str, NDArray[np.float32]]
"""How much each input of a matrix matters, by Hugging Face's name of the matrix."""


def gguf_target(
    model: Model,
    name: str,
    dtype: BlockFormat | None = None,
    mix: Mix | None = None,
    importance: Importance | None = None,
    threads: int | None = None,
    instruct: bool = False,
) -> Target:
    """One file called `name`.

    Args:
        dtype: a plain type for all matrices; None keeps what they are.
        mix: formats to quantise to.
        importance: of the inputs, where they were measured.
        instruct: give Llama 3's chat template to its tokenizer.

    Raises:
        CheckpointError: the model has something that GGUF or llama.cpp has not.
        TokenizerError: the tokenizer cannot be expressed.
    """
    if model.head != "lm":
        raise CheckpointError(f"the model's head is {model.head!r}; GGUF files of LLaMAs hold language models only")
    config = model.config
    tensors: dict[str, Rows] = {}
    fallbacks: dict[str, str] = {}
    new: list[NewTensor] = []
    for hf, _ in expected_tensors(config, "lm"):
        rows = model.tensors[hf]
        if len(rows.shape) == 1:
            stored: Rows = rows if rows.format.name == "f32" else Cast(rows, FORMATS["f32"])
        elif mix is not None:
            form, wanted = choose(mix, hf, rows.shape[1], config, importance is not None)
            if form != wanted:
                fallbacks[hf] = form.name
            stored = _formatted(rows, form, _importance_of(hf, importance, config), threads)
        else:
            stored = rows if dtype is None else _formatted(rows, dtype, None, threads)
        tensors[hf] = stored
        gguf, order = from_hf(hf, "gguf"), interleaved_rows(hf, config)
        assert gguf is not None, "the table names every tensor of a language model"
        new.append(new_tensor(gguf, stored if order is None else Reordered(stored, np.argsort(order))))
    for hf, numbers in rope_tensors(config).items():
        new.append(NewTensor(hf, FORMATS["f32"], numbers.shape, numbers))
    quantised = any(rows.format.values > 1 for rows in tensors.values())
    metadata = gguf_metadata(model, _file_type(model, tensors, dtype, mix), quantised, instruct)
    file = NewFile(name, tuple(new), lambda path, some: write_gguf(path, metadata, some))
    return Target((file,), lambda folder: [], tensors, fallbacks, gguf_notes(model))


def _importance_of(name: str, importance: Importance | None, config: LlamaConfig) -> NDArray[np.float32] | None:
    """Of a tied head too, which is measured as the head and stored as the embedding."""
    measured = HEAD if name == EMBEDDING and config.tie_word_embeddings else name
    return (importance or {}).get(measured)


def _formatted(rows: Rows, form: BlockFormat, importance: NDArray[np.float32] | None, threads: int | None) -> Rows:
    if rows.format == form:
        return rows
    return Cast(rows, form) if form.values == 1 else Quantized(rows, form, importance, threads)


def _file_type(model: Model, tensors: dict[str, Rows], dtype: BlockFormat | None, mix: Mix | None) -> int:
    """llama.cpp's number of what most of the file is; of a file kept as it was, what it said itself."""
    if mix is not None:
        return mix.file_type
    if model.kind == "gguf" and all(rows.format == model.tensors[name].format for name, rows in tensors.items()):
        said = model.metadata.get("general.file_type")
        if type(said) is int:
            return said
    kinds = [rows.format for rows in tensors.values() if len(rows.shape) > 1]
    main = max(kinds, key=kinds.count) if kinds else main_type(model, dtype)
    return MIXES[main.name.lower()].file_type
