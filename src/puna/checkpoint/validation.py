"""Does what a file holds fit its configuration? Every tensor there, none besides, each of the right shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from puna.checkpoint.names import Head, expected_tensors, is_ignored
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, StoredTensor
from puna.formats.grouped import GroupedMatrix

_SHOWN = 5
"""Names listed in an error; a wrong configuration makes hundreds."""

_TIED_ROWS = 1024
"""Rows compared at once between an embedding and a copy stored as the head."""


def full_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`tensors` under the names of a model with a head, without what is ignored.

    A bare `LlamaModel` saves `layers.0...` where a model with a head saves `model.layers.0...`.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not is_ignored(name)}
    if any(name.startswith("model.") for name in kept):
        return kept
    heads = ("lm_head.weight", "score.weight")
    return {name if name in heads else f"model.{name}": tensor for name, tensor in kept.items()}


def find_head(config: LlamaConfig, tensors: Mapping[str, RowSource], bare: bool) -> Head:
    """Which head the checkpoint has.

    Without any, a file counts as a bare model only if it says so: by names that lack "model.", or in `architectures`.
    A causal model that lost its head must not pass for one.
    """
    if "score.weight" in tensors:
        return "classification"
    if "lm_head.weight" in tensors or config.tie_word_embeddings:
        return "lm"
    names = config.architectures or []
    if names == ["LlamaForSequenceClassification"]:
        return "classification"
    return "none" if bare or names == ["LlamaModel"] else "lm"


def drop_tied_head(config: LlamaConfig, tensors: dict[str, StoredTensor | GroupedMatrix]) -> None:
    """Takes out a head that a tied model's file repeats, after making sure that it is the embedding.

    Raises:
        CheckpointError: it is not: one of the two would be lost silently.
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


def _same_values(one: StoredTensor | GroupedMatrix, other: StoredTensor | GroupedMatrix) -> bool:
    def rows(tensor: StoredTensor | GroupedMatrix, start: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        data = tensor.take(np.arange(start, min(start + _TIED_ROWS, tensor.shape[0])))
        return tensor.format.decode(data.reshape(-1))

    starts = range(0, one.shape[0] if one.shape else 0, _TIED_ROWS)
    return all(np.array_equal(rows(one, start), rows(other, start), equal_nan=True) for start in starts)


def check_tensors(config: LlamaConfig, head: Head, tensors: Mapping[str, RowSource]) -> None:
    """Raises CheckpointError unless `tensors` are exactly what `config` and `head` ask for."""
    missing, needed = [], set()
    for name, shape in expected_tensors(config, head):
        found = tensors.get(name)
        needed.add(name)
        if found is None:
            missing.append(name)
            if len(missing) > _SHOWN:  # an absurd number of layers must not be counted to its end
                break
        elif found.shape != shape:
            raise CheckpointError(
                f"tensor {found.name!r} has the shape {found.shape}; the configuration asks for {shape}. "
                "The configuration belongs to another model, or the file is damaged"
            )
        elif found.format.name not in FORMATS:
            raise CheckpointError(
                f"tensor {found.name!r} holds whole numbers ({found.format.name}), which weights are not; the folder "
                "may be quantised in a way its config.json does not tell"
            )
        elif len(shape) == 1 and found.format.values > 1:
            raise CheckpointError(
                f"tensor {found.name!r} is a vector stored as {found.format.name}; "
                "norms and biases are never quantised, convert the model again"
            )
    if missing:
        raise CheckpointError(f"missing tensors: {_listed(missing)}. {_why_missing(missing)}")
    refuse_extra([name for name in tensors if name not in needed])


def _why_missing(names: list[str]) -> str:
    if all(name.endswith(".self_attn.o_proj.bias") for name in names):
        return (
            "attention_bias means biases on q, k, v and o, and here o has none: that is another architecture's model; "
            "one converted with biases of zero for o (attn_output.bias in GGUF) computes the same"
        )
    return "The configuration belongs to another model, or a file is missing"


def refuse_extra(extra: list[str]) -> None:
    """Raises CheckpointError if there are any names in `extra`."""
    if extra:
        raise CheckpointError(
            f"tensors that a LLaMA of this configuration does not have: {_listed(extra)}. "
            "Use a model of the llama architecture, merged with its adapters"
        )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown
