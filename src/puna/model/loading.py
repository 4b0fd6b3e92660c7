"""Loads weights from a checkpoint into a model, and saves a model to a folder, one tensor at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from puna.checkpoint import Checkpoint, Weight
from puna.checkpoint.names import HEADS
from puna.config import LlamaConfig
from puna.errors import CheckpointError, ConfigError, RequestError
from puna.model.base import LlamaBase
from puna.model.quantized import PackedMatrix, QuantEmbedding, QuantLinear
from puna.saving import save_checkpoint

Model = TypeVar("Model", bound=LlamaBase)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def choose_dtype(dtype: torch.dtype | str | None, checkpoint: Checkpoint) -> torch.dtype:
    """Returns the type that `dtype` names: None means float32, "auto" the stored type (float32 if quantised)."""
    if isinstance(dtype, torch.dtype):
        return dtype
    name = "float32" if dtype is None else dtype
    if name == "auto":
        # config.dtype is not reliable: converters wrote float16 for bfloat16 weights (transformers issue 25446).
        name = checkpoint.tensors["model.embed_tokens.weight"].format.torch or "float32"
    if name not in _DTYPES:
        raise ConfigError(f"dtype is {name!r}; it must be 'auto', a torch.dtype or one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load(
    kind: type[Model],
    checkpoint: Checkpoint,
    config: LlamaConfig,
    dtype: torch.dtype,
    device: torch.device,
    keep_quantized: bool = False,
) -> Model:
    """Returns a model of class `kind` with the checkpoint's weights, in evaluation mode.

    A head that the checkpoint lacks is initialised at random, with a warning; a head that `kind` lacks is not loaded.
    With `keep_quantized`, matrices in blocks stay packed.

    Raises:
        RequestError: if a matrix is in a format that cannot be kept.
        CheckpointError: if any other tensor is missing, superfluous or of another shape. This happens only if `config`
            is not the checkpoint's own configuration.
    """
    with torch.device("meta"):
        model = kind(config)
    parameters = {_full_name(kind, name): (name, parameter) for name, parameter in model.named_parameters()}
    new_head = _compare(kind, checkpoint, {name: tuple(parameter.shape) for name, (_, parameter) in parameters.items()})
    for full, (name, parameter) in parameters.items():
        if full in new_head:
            _set(model, name, torch.empty(parameter.shape, dtype=dtype, device=device))
        elif keep_quantized and len(parameter.shape) == 2 and checkpoint.tensors[full].format.torch is None:
            _keep(model, name, checkpoint.tensors[full], dtype, device)
        else:
            _set(model, name, _read(checkpoint.tensors[full], dtype).to(device))
    for path in {name.rpartition(".")[0] for name in new_head}:
        model.init_weights(model.get_submodule(path))
    model.tie_weights()
    model.to(device)  # moves the rotary frequencies
    return model.eval()


def _full_name(kind: type[LlamaBase], name: str) -> str:
    """Returns the name in a checkpoint of a parameter of a model of class `kind`."""
    if kind.head == "none":
        return f"model.{name}"
    prefix = f"{kind.base_model_prefix}."
    return f"model.{name.removeprefix(prefix)}" if name.startswith(prefix) else name


def _compare(kind: type[Model], checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> set[str]:
    """Checks that the checkpoint has the expected tensors; returns the names of a head to initialise at random."""
    stored = {name: weight.shape for name, weight in checkpoint.tensors.items()}
    differs = kind.head != checkpoint.head
    new_head = set(HEADS[kind.head] & expected.keys()) if differs else set()
    unused_head = set(HEADS[checkpoint.head] & stored.keys()) if differs else set()
    missing = sorted(expected.keys() - stored.keys() - new_head)
    extra = sorted(stored.keys() - expected.keys() - unused_head)
    compared = (expected.keys() & stored.keys()) - new_head
    mismatches = [name for name in compared if expected[name] != stored[name]]
    if missing or extra or mismatches:
        shapes = [f"{name} is {stored[name]} instead of {expected[name]}" for name in sorted(mismatches)]
        raise CheckpointError(
            f"{checkpoint.path} does not match the given configuration. Missing: {missing[:5]}; superfluous: "
            f"{extra[:5]}; of another shape: {shapes[:5]}. Use the checkpoint's own configuration"
        )
    if new_head:
        note = f" and its {', '.join(sorted(unused_head))} is not used" if unused_head else ""
        warnings.warn(
            f"{checkpoint.path} has no {', '.join(sorted(new_head))}{note}; the head of {kind.__name__} is initialised "
            "at random and must be trained",
            stacklevel=4,
        )
    return new_head


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor))


def _keep(model: nn.Module, name: str, weight: Weight, dtype: torch.dtype, device: torch.device) -> None:
    """Replaces the layer of parameter `name` by one with a packed matrix. Biases are set later."""
    path = name.rpartition(".")[0]
    owner, _, attribute = path.rpartition(".")
    layer = model.get_submodule(path)
    rows = torch.from_numpy(np.require(weight.rows(), requirements="W")).to(device)
    packed = PackedMatrix(weight.name, weight.format.name, rows, weight.shape[1])
    if isinstance(layer, nn.Embedding):
        new: nn.Module = QuantEmbedding(packed, layer.padding_idx, dtype)
    else:
        assert isinstance(layer, nn.Linear), "every matrix belongs to an embedding or a linear layer"
        new = QuantLinear(packed, layer.bias)
    setattr(model.get_submodule(owner), attribute, new)


def _read(weight: Weight, dtype: torch.dtype) -> Tensor:
    if weight.format.torch is not None and _DTYPES[weight.format.torch] == dtype:
        return torch.from_numpy(np.require(weight.rows(), requirements="W")).view(dtype).view(weight.shape)
    return torch.from_numpy(weight.to_float32()).to(dtype)


def save(model: LlamaBase, folder: str | Path, max_shard_size: int | str) -> None:
    """Writes the configurations and the weights (safetensors, in their dtype and under their names) atomically.

    A tied head is omitted. generation_config.json is written only for a model with a language-model head.

    Raises:
        RequestError: if matrices are packed; the configuration ties head and embeddings but they are two matrices, one
            of which would be lost; or the weights are on the meta device.
        CheckpointError: if the weights have a type that the files cannot hold.
        ConfigError: if the configuration cannot be written as JSON.
        OSError: if the disk is full or cannot be written; an earlier save in `folder` is unchanged.
    """
    if packed := sum(isinstance(module, PackedMatrix) for module in model.modules()):
        raise RequestError(
            f"{packed} matrices of the model are packed, and safetensors files hold float numbers; call dequantize() "
            "first, or convert the file that they came from (puna convert)"
        )
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not model.get_input_embeddings().weight:
        raise RequestError(
            "config.tie_word_embeddings is True, but the head is a separate matrix; call tie_weights(), or set "
            "config.tie_word_embeddings to False"
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise RequestError("the weights are on the meta device and have no values; load or initialise them first")
    fields = {key: value for key, value in model.config.to_dict().items() if key != "attn_implementation"}
    config = LlamaConfig.from_dict(fields, dtype=model.dtype, architectures=[type(model).__name__])
    generation = model.generation_config if model.head == "lm" else None
    save_checkpoint(folder, config, _tensors(model), generation, max_shard_size)


def _tensors(model: LlamaBase) -> Iterator[tuple[str, str, tuple[int, ...], partial[NDArray[np.uint8]]]]:
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        yield name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), partial(_bytes, tensor)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return packed
