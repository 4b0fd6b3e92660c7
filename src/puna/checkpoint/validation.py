"""Compares a checkpoint's tensors with its configuration: none may be missing, extra, or of another shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from puna.checkpoint.names import CLASSES, HEADS, Head, expected_tensors, is_known
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS

Tensor = TypeVar("Tensor")

_MAX_SHOWN = 5
"""Maximum number of names in an error: with a wrong configuration, hundreds may be missing."""

_ROWS_AT_ONCE = 1024
"""Rows of the embedding and of the head that are compared at once."""


def full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames `layers.0...`, of a bare `LlamaModel`, and `transformer.layers.0...` to `model.layers.0...`."""
    if any(name.startswith("model.") for name in tensors):
        return dict(tensors)
    heads = {name for names in HEADS.values() for name in names}
    return {
        name if name in heads else f"model.{name.removeprefix('transformer.')}": tensor
        for name, tensor in tensors.items()
    }


def find_head(config: LlamaConfig, tensors: Mapping[str, RowSource], bare: bool, reader: Head | None = None) -> Head:
    """Returns the head of a checkpoint.

    Args:
        reader: the head of the class that reads the files, if known.

    Without a tensor of a head:
    - a tied model has the head "lm";
    - it is "none" if the reader needs another head than "lm";
    - `architectures` may name the class of another head;
    - tensor names without "model." (`bare`), or `architectures` LlamaModel, mean "none";
    - anything else is "lm", and `check_tensors` reports the missing head.
    """
    for head in ("question_answering", "token_classification", "classification"):
        if HEADS[head] <= tensors.keys():
            return head
    if "lm_head.weight" in tensors or config.tie_word_embeddings:
        return "lm"
    if reader not in (None, "lm"):
        return "none"
    for head, name in CLASSES.items():
        if config.architectures == [name]:
            return head
    return "none" if bare else "lm"


def drop_tied_head(config: LlamaConfig, tensors: dict[str, RowSource]) -> None:
    """Removes a tied model's head from `tensors` if it equals the embedding.

    Raises:
        CheckpointError: the head differs from the embedding: dropping either would change the model.
    """
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if not config.tie_word_embeddings or head is None or embedding is None:
        return
    if head.shape != embedding.shape or not _same_values(head, embedding):
        raise CheckpointError(
            "tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight; "
            "set tie_word_embeddings to false in config.json to use both"
        )
    del tensors["lm_head.weight"]


def _same_values(one: RowSource, other: RowSource) -> bool:
    def rows(tensor: RowSource, start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        data = tensor.take(np.arange(start, min(start + _ROWS_AT_ONCE, tensor.shape[0])))
        return tensor.format.decode(data.reshape(-1))

    starts = range(0, one.shape[0] if one.shape else 0, _ROWS_AT_ONCE)
    return all(np.array_equal(rows(one, start), rows(other, start), equal_nan=True) for start in starts)


def check_tensors(config: LlamaConfig, head: Head, tensors: Mapping[str, RowSource]) -> None:
    """Compares the tensors with those that the configuration requires.

    Raises:
        CheckpointError: a tensor is missing or unexpected, has the wrong shape, is stored in a type that cannot hold
            weights, or is a quantised vector.
    """
    missing, expected = [], set()
    for name, shape in expected_tensors(config, head):
        tensor = tensors.get(name)
        expected.add(name)
        if tensor is None:
            missing.append(name)
            if len(missing) > _MAX_SHOWN:  # num_hidden_layers may be huge in a damaged configuration
                break
        elif tensor.shape != shape:
            raise CheckpointError(
                f"tensor {tensor.name!r} has the shape {tensor.shape}; the configuration requires {shape}. "
                "The configuration belongs to another model, or the file is damaged"
            )
        elif tensor.format.name not in FORMATS:
            raise CheckpointError(
                f"tensor {tensor.name!r} is stored as {tensor.format.name}, a type that alone cannot be read as "
                "weights; the folder may be quantised with a method that its config.json does not mention"
            )
        elif len(shape) == 1 and tensor.format.values > 1:
            raise CheckpointError(
                f"tensor {tensor.name!r} is a vector stored as {tensor.format.name}; "
                "norms and biases are never quantised, convert the model again"
            )
    if missing:
        unknown = [name for name in tensors if not is_known(name)]
        others = f"; there are unknown tensors instead: {_list(unknown)}" if unknown else ""
        raise CheckpointError(f"missing tensors: {_list(missing)}{others}. {_cause(missing)}")
    refuse_extra([name for name in tensors if name not in expected])


def _cause(names: list[str]) -> str:
    if all(name.endswith(".self_attn.o_proj.bias") for name in names):
        return (
            "attention_bias requires biases on q, k, v and o, but o has none here: the model has another architecture. "
            "Convert it with zero biases for o (attn_output.bias in GGUF), which does not change its results"
        )
    return "The configuration belongs to another model, or a file is missing"


def refuse_extra(extra: list[str]) -> None:
    """Raises CheckpointError if there are any names in `extra`."""
    if extra:
        raise CheckpointError(
            f"tensors that a LLaMA model with this configuration does not have: {_list(extra)}. "
            "The model has another architecture"
        )


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_MAX_SHOWN])
    return f"{shown}, ..." if len(names) > _MAX_SHOWN else shown
