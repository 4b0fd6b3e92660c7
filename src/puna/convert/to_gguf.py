"""A GGUF file: metadata as llama.cpp's converter writes it; matrices copied, cast or quantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint import Checkpoint, Weight
from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors, from_hf, interleaved_rows
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.convert.calibration import Importance
from puna.convert.gguf_metadata import gguf_metadata, rope_tensors
from puna.convert.lazy_rows import Cast, Quantized
from puna.convert.mixes import Mix, choose, file_type_of, find_mix
from puna.convert.options import Options
from puna.convert.settings import stored_metadata
from puna.convert.target import NewFile, Target, find_dtype, main_type, new_tensor
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat
from puna.formats.gguf_writer import write_gguf
from puna.formats.new_tensor import NewTensor


def gguf_target(checkpoint: Checkpoint, name: str, options: Options, importance: Importance | None = None) -> Target:
    """Returns the GGUF file called `name`.

    Args:
        importance: the importance of each matrix's inputs; empty before the measurement, None without calibration.

    Raises:
        CheckpointError: GGUF or llama.cpp has no equivalent of a property of the model.
        TokenizerError: GGUF cannot hold the tokenizer.
    """
    dtype = find_dtype(options.dtype)
    mix = None if options.quantize is None else find_mix(options.quantize)
    if checkpoint.head != "lm":
        raise CheckpointError(
            f"the model's head is {checkpoint.head!r}; GGUF files of LLaMAs hold language models only"
        )
    config = checkpoint.config
    tensors: dict[str, RowSource] = {}
    fallbacks: dict[str, str] = {}
    for hf, shape in expected_tensors(config, "lm"):
        weight = checkpoint.tensors[hf]
        form = FORMATS["f32"] if len(shape) == 1 else dtype or weight.format
        if mix is not None and len(shape) > 1:
            form, preferred = choose(mix, hf, shape[1], config, importance is not None)
            if form != preferred:
                fallbacks[hf] = form.name
        tensors[hf] = _cast_or_quantize(weight, form, _importance_of(hf, importance, config), options.threads)
    new = [_new_tensor(name, source, config) for name, source in tensors.items()]
    new += [NewTensor(key, FORMATS["f32"], numbers.shape, numbers) for key, numbers in rope_tensors(config).items()]
    stored = stored_metadata(checkpoint)
    quantised = any(source.format.values > 1 for source in tensors.values())
    file_type = _file_type(checkpoint, tensors, dtype, mix, stored)
    metadata, notes = gguf_metadata(checkpoint, stored, file_type, quantised, options.instruct)
    file = NewFile(name, tuple(new), lambda path, written: write_gguf(path, metadata, written))
    return Target((file,), lambda folder: [], tensors, fallbacks, notes)


def _importance_of(name: str, importance: Importance | None, config: LlamaConfig) -> NDArray[np.float32] | None:
    """Returns the importance of a matrix's inputs. A tied head is measured as the head and stored as the embedding."""
    matrix = HEAD if name == EMBEDDING and config.tie_word_embeddings else name
    return (importance or {}).get(matrix)


def _cast_or_quantize(
    source: Weight, form: BlockFormat, importance: NDArray[np.float32] | None, threads: int | None
) -> RowSource:
    if source.format == form:
        return source
    return Cast(source, form) if form.values == 1 else Quantized(source, form, importance, threads)


def _new_tensor(name: str, source: RowSource, config: LlamaConfig) -> NewTensor:
    """Returns a tensor under GGUF's name and in GGUF's order of rows."""
    gguf, order = from_hf(name, "gguf"), interleaved_rows(name, config)
    assert gguf is not None, "every tensor of a language model has a name in GGUF"
    return new_tensor(gguf, source if order is None else Weight(name, (source,), order=np.argsort(order)))


def _file_type(
    checkpoint: Checkpoint,
    tensors: Mapping[str, RowSource],
    dtype: BlockFormat | None,
    mix: Mix | None,
    metadata: Mapping[str, Any],
) -> int:
    """Returns general.file_type: llama.cpp's code for the dominant tensor type; copied if the tensors are copied."""
    if mix is not None:
        return mix.file_type
    if all(source.format == checkpoint.tensors[name].format for name, source in tensors.items()):
        stored = metadata.get("general.file_type")
        if type(stored) is int:
            return stored
    formats = [source.format for source in tensors.values() if len(source.shape) > 1]
    main = max(formats, key=formats.count) if formats else main_type(checkpoint, dtype)
    return file_type_of(main)
