"""Weights from a checkpoint into a model, and back into a folder; one tensor at a time: nothing is held twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.checkpoint import Checkpoint, Weight
from puna.config import LlamaConfig
from puna.errors import CheckpointError, ConfigError, RequestError
from puna.saving import save_checkpoint

if TYPE_CHECKING:
    from puna.model.pretrained import LlamaPreTrainedModel

Model = TypeVar("Model", bound="LlamaPreTrainedModel")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

_HEADS = {"lm": "lm_head.weight", "classification": "score.weight", "none": None}


def choose_dtype(dtype: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    """float32 for None; for "auto" the type the weights are stored in, float32 where they are quantised."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype or "float32"
    if name == "auto":
        # Not config.dtype: converters have written float16 there for bfloat16 weights (transformers issue 25446).
        name = checkpoint.tensors["model.embed_tokens.weight"].format.torch or "float32"
    if name not in _DTYPES:
        raise ConfigError(f"dtype is {name!r}; it must be 'auto', a torch.dtype or one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load(
    kind: type[Model], checkpoint: Checkpoint, config: LlamaConfig, dtype: torch.dtype, device: torch.device
) -> Model:
    """A model of class `kind` with the checkpoint's weights, in evaluation mode.

    A head the checkpoint does not have is drawn anew, with a warning; a head that `kind` does not have is left out.

    Raises:
        CheckpointError: any other tensor is missing, left over or of another shape, which only a `config` that is not
            the checkpoint's can bring about.
    """
    with torch.device("meta"):
        model = kind(config)
    prefix = "model." if kind.head == "none" else ""
    wanted = {prefix + name: (name, parameter) for name, parameter in model.named_parameters()}
    new_head = _compare(kind, checkpoint, {name: tuple(parameter.shape) for name, (_, parameter) in wanted.items()})
    for full, (name, parameter) in wanted.items():
        if full == new_head:
            _set(model, name, torch.empty(parameter.shape, dtype=dtype, device=device))
            model.init_weights(model.get_submodule(name.rpartition(".")[0]))
        else:
            _set(model, name, _read(checkpoint.tensors[full], dtype).to(device))
    model.tie_weights()
    model.to(device)  # the rotary frequencies
    return model.eval()


def _compare(kind: type[Model], checkpoint: Checkpoint, wanted: dict[str, tuple[int, ...]]) -> str | None:
    """Checks that model and checkpoint agree; returns the name of a head to be drawn anew."""
    held = {name: weight.shape for name, weight in checkpoint.tensors.items()}
    mine, theirs = _HEADS[kind.head], _HEADS[checkpoint.head]
    new_head = mine if mine != theirs and mine in wanted else None
    spare = theirs if mine != theirs and theirs in held else None
    missing = sorted(wanted.keys() - held.keys() - {new_head})
    extra = sorted(held.keys() - wanted.keys() - {spare})
    other = [name for name in wanted.keys() & held.keys() if wanted[name] != held[name]]
    if missing or extra or other:
        shapes = [f"{name} is {held[name]}, the configuration means {wanted[name]}" for name in sorted(other)]
        raise CheckpointError(
            f"{checkpoint.path}: does not fit the given configuration. Missing: {missing[:5]}; left over: {extra[:5]}; "
            f"of another shape: {shapes[:5]}. Use the checkpoint's own configuration"
        )
    if new_head is not None:
        left = "" if spare is None else f" and its {spare} is not used"
        warnings.warn(
            f"{checkpoint.path} has no {new_head}{left}; the head of {kind.__name__} was drawn at random and has to be "
            "trained",
            stacklevel=4,
        )
    return new_head


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor))


def _read(weight: Weight, dtype: torch.dtype) -> Tensor:
    if weight.format.torch is not None and _DTYPES[weight.format.torch] == dtype:
        return torch.from_numpy(np.array(weight.rows())).view(dtype).view(weight.shape)
    return torch.from_numpy(weight.to_float32()).to(dtype)


def save(model: LlamaPreTrainedModel, folder: str | Path, max_shard_size: int | str) -> None:
    """Writes the configurations and the weights as safetensors, in their dtype and under their names: all or nothing.

    A tied head is left out. generation_config.json is written for a model with a language model's head.

    Raises:
        RequestError: the configuration ties head and embeddings, but they are two matrices: one would be lost; or the
            weights are on the meta device.
        CheckpointError: the weights are of a type the files cannot hold.
        ConfigError: a configuration that JSON cannot hold.
        OSError: the disk is full or refuses; an earlier save in `folder` is as it was.
    """
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not model.get_input_embeddings().weight:
        raise RequestError(
            "config.tie_word_embeddings is True, but the head has a matrix of its own; call tie_weights(), or set "
            "config.tie_word_embeddings to False"
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise RequestError("the weights are on the meta device, where they have no values; load or draw them first")
    fields = {key: value for key, value in model.config.to_dict().items() if key != "attn_implementation"}
    config = LlamaConfig.from_dict(fields, dtype=model.dtype, architectures=[type(model).__name__])
    generation = model.generation_config if model.head == "lm" else None
    save_checkpoint(folder, config, _tensors(model), generation, max_shard_size)


def _tensors(model: LlamaPreTrainedModel) -> Iterator[tuple[str, str, tuple[int, ...], partial[NDArray[np.uint8]]]]:
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        yield name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), partial(_bytes, tensor)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return packed
