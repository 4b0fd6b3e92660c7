"""Loads weights from a checkpoint, or from a state dict, into a new model, one tensor at a time."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from puna.checkpoint import Checkpoint, Weight
from puna.config import LlamaConfig
from puna.errors import BackendError, CheckpointError, ConfigError, ShapeError
from puna.model.base import LlamaBase
from puna.model.huggingface.placement import Placement, check_names, infer_placement
from puna.model.quantized import PackedMatrix, QuantEmbedding, QuantLinear

Model = TypeVar("Model", bound=LlamaBase)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def choose_dtype(dtype: torch.dtype | str | None, tensors: Mapping[str, Weight | Tensor]) -> torch.dtype:
    """Returns the type that `dtype` names: None means float32, "auto" the stored type (float32 if quantised).

    Raises:
        ConfigError: if weights cannot have this type.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name == "auto":
        # config.dtype is not reliable: converters wrote float16 for bfloat16 weights (transformers issue 25446).
        embedding = tensors["model.embed_tokens.weight"]
        stored = embedding.format.torch if isinstance(embedding, Weight) else str(embedding.dtype)
        name = (stored or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise ConfigError(f"dtype is {name!r}; it must be 'auto', a torch.dtype or one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


@dataclass
class Loading(Generic[Model]):
    """A model to load.

    Attributes:
        kind: the class of the model.
        tensors: the weights by their full names, with "model." before those of a bare `LlamaModel`.
        config: the configuration of the model.
        dtype: the type of the weights in memory.
        placement: the devices; or the arguments of `infer_placement`.
        source: the path of the checkpoint, for messages.
        keep_quantized: whether matrices in quantised formats stay packed.
        ignore_mismatched_sizes: whether tensors with another shape are initialised at random.
        arguments, options: further arguments of the class.
    """

    kind: type[Model]
    tensors: Mapping[str, Weight | Tensor]
    config: LlamaConfig
    dtype: torch.dtype
    placement: Placement | dict[str, Any]
    source: str | Path = "the state dict"
    keep_quantized: bool = False
    ignore_mismatched_sizes: bool = False
    arguments: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Comparison:
    """The differences between the tensors of a checkpoint and of a model, as `output_loading_info` returns them.

    Attributes:
        missing: parameters of the model's head that the checkpoint lacks; they are initialised at random.
        unexpected: tensors of another head, which are not loaded.
        mismatched: (name, stored shape, shape in the model) of tensors that are initialised at random.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, torch.Size, torch.Size]]

    @property
    def new(self) -> list[str]:
        """The parameters to initialise."""
        return [*self.missing, *(name for name, _, _ in self.mismatched)]

    def to_dict(self) -> dict[str, list[Any]]:
        """Returns the lists by the names that they have in transformers."""
        return {
            "missing_keys": self.missing,
            "unexpected_keys": self.unexpected,
            "mismatched_keys": self.mismatched,
            "error_msgs": [],
        }


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns PyTorch's errors for exhausted memory into a BackendError. On the CPU, they are plain RuntimeErrors."""
    try:
        yield
    except RuntimeError as exc:
        if not isinstance(exc, torch.OutOfMemoryError) and "allocate memory" not in str(exc):
            raise
        raise BackendError(
            f"memory is exhausted ({str(exc).splitlines()[0]}); free memory, raise the limit of this process (ulimit "
            "-v), or use a smaller model, a shorter text or a smaller dtype"
        ) from exc


def load(loading: Loading[Model]) -> tuple[Model, Comparison]:
    """Returns a model with the weights of a checkpoint, in evaluation mode, and its differences from the checkpoint.

    A head that the checkpoint lacks is initialised at random, with a warning; a head that the class lacks is not
    loaded.

    Raises:
        RequestError: if a matrix is in a format that cannot be kept, or a device map does not fit the model.
        ShapeError: if a tensor has another shape.
        CheckpointError: if any other tensor is missing or superfluous. This happens only if the configuration is not
            that of the checkpoint.
    """
    _check_layers(loading)
    model = _construct(loading)
    tensors = model.state_dict()
    names = {_full_name(model, name): name for name in tensors}
    shapes = {full: tensors[name].shape for full, name in names.items()}
    if loading.config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    comparison = compare(shapes, loading)
    placement = loading.placement
    if not isinstance(placement, Placement):
        placement = infer_placement(model, loading.dtype, placement)
    if list(placement.devices) != [""]:
        check_names(model, placement)
    _initialise(model, [names[full] for full in comparison.new], loading.dtype, placement)
    for full in shapes:
        if full not in comparison.new:
            _load_tensor(model, names[full], loading.tensors[full], loading, placement)
    model.tie_weights()
    placement.finish(model)
    return model.eval(), comparison


def _full_name(model: LlamaBase, name: str) -> str:
    """Returns the name in a checkpoint of a tensor of a model: "model." precedes the names of the decoder's tensors."""
    prefix = model.base_model_prefix
    if not hasattr(model, prefix):
        return f"model.{name}"
    return f"model.{name.removeprefix(f'{prefix}.')}" if name.startswith(f"{prefix}.") else name


def _load_tensor(
    model: LlamaBase, name: str, weight: Weight | Tensor, loading: Loading[Any], placement: Placement
) -> None:
    is_packed = loading.keep_quantized and isinstance(weight, Weight) and weight.format.torch is None
    if is_packed and len(weight.shape) == 2:
        assert isinstance(weight, Weight)
        _keep_packed(model, name, weight, loading.dtype, placement)
    else:
        _set_tensor(model, name, placement.put(name, _read(weight, loading.dtype)))


def _construct(loading: Loading[Model]) -> Model:
    """Returns the model without memory for its weights.

    The constructor of a class defined outside puna may initialise weights, so these get memory, too.
    """
    device = "meta" if loading.kind.__module__.startswith("puna.") else "cpu"
    with torch.device(device):
        model = loading.kind(loading.config, *loading.arguments, **loading.options)
    return model if device == "meta" else model.to(loading.dtype)


def compare(shapes: Mapping[str, torch.Size], loading: Loading[Any]) -> Comparison:
    """Compares the tensors of a checkpoint with `shapes`, those of a model; warns about initialised parameters.

    Raises:
        CheckpointError: as in `load`.
    """
    stored = {name: torch.Size(tensor.shape) for name, tensor in loading.tensors.items()}
    missing, extra = sorted(shapes.keys() - stored.keys()), sorted(stored.keys() - shapes.keys())
    mismatched = [
        (name, stored[name], shape) for name, shape in shapes.items() if name in stored and stored[name] != shape
    ]
    tied = "lm_head.weight" if loading.config.tie_word_embeddings and loading.kind.head == "lm" else ""
    absent = [name for name in missing if name.startswith("model.")]
    unused_layers = [name for name in extra if _layer(name) >= loading.config.num_hidden_layers]
    superfluous = [name for name in extra if name not in unused_layers and (name.startswith("model.") or name == tied)]
    _refuse(loading, absent, superfluous, [] if loading.ignore_mismatched_sizes else mismatched)
    if unused_layers:
        count = loading.config.num_hidden_layers
        _warn(f"{loading.source}: num_hidden_layers is {count}; the further layers of the checkpoint are not loaded")
    remedy = f"of {loading.kind.__name__} is initialised at random and must be trained"
    if missing:
        heads = [name for name in extra if name not in unused_layers]
        unused = f" and its {', '.join(heads)} is not used" if heads else ""
        _warn(f"{loading.source} has no {', '.join(missing)}{unused}; the head {remedy}")
    for name, old, new in mismatched:
        _warn(f"{loading.source}: the shapes did not match: {name} is {tuple(old)}; {name}, {tuple(new)}, {remedy}")
    return Comparison(missing, extra, mismatched)


def _check_layers(loading: Loading[Any]) -> None:
    """Raises CheckpointError if the configuration has layers that the checkpoint lacks: there may be a billion."""
    count, stored = loading.config.num_hidden_layers, 1 + max(map(_layer, loading.tensors), default=-1)
    if count > stored:
        raise CheckpointError(
            f"{loading.source} does not match the given configuration: num_hidden_layers is {count}, but the "
            f"checkpoint has only {stored} layers. Use the checkpoint's own configuration, or at most {stored} layers"
        )


def _layer(name: str) -> int:
    """Returns the number of the layer that a tensor belongs to, -1 if to none."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] and parts[2].isdecimal() else -1


def _refuse(
    loading: Loading[Any],
    missing: Iterable[str],
    extra: Iterable[str],
    mismatched: Iterable[tuple[str, torch.Size, torch.Size]],
) -> None:
    missing, extra = list(missing), list(extra)
    shapes = [f"{name} is {tuple(stored)} instead of {tuple(expected)}" for name, stored, expected in mismatched]
    if missing or extra or shapes:
        kind = ShapeError if shapes and not missing and not extra else CheckpointError
        remedy = ", or ignore_mismatched_sizes=True to initialise these at random" if kind is ShapeError else ""
        raise kind(
            f"{loading.source} does not match the given configuration. Missing: {missing[:5]}; superfluous: "
            f"{extra[:5]}; of another shape: {shapes[:5]}. Use the checkpoint's own configuration{remedy}"
        )


def _warn(text: str) -> None:
    """Warns at the first line outside this package: the one that called `from_pretrained`, perhaps of an Auto class."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("puna."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def _initialise(model: LlamaBase, names: Iterable[str], dtype: torch.dtype, placement: Placement) -> None:
    """Creates parameters that are not loaded, and initialises them; a constructor may have done so already."""
    for path in {name.rpartition(".")[0] for name in names if model.get_parameter(name).is_meta}:
        layer = model.get_submodule(path)
        for attribute, parameter in list(layer.named_parameters(recurse=False)):
            _set_tensor(layer, attribute, torch.empty(parameter.shape, dtype=dtype))
        model._init_weights(layer)
    for name in names:
        _set_tensor(model, name, placement.put(name, model.get_parameter(name).detach()))


def _set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    if attribute in module._buffers:
        module._buffers[attribute] = tensor
    else:
        old = getattr(module, attribute)
        setattr(module, attribute, nn.Parameter(tensor, old.requires_grad))


def _keep_packed(model: nn.Module, name: str, weight: Weight, dtype: torch.dtype, placement: Placement) -> None:
    """Replaces the layer of parameter `name` by one with a packed matrix. Biases are set later."""
    path = name.rpartition(".")[0]
    owner, _, attribute = path.rpartition(".")
    layer = model.get_submodule(path)
    rows = placement.put(name, torch.from_numpy(np.require(weight.rows(), requirements="W")))
    packed = PackedMatrix(weight.name, weight.format.name, rows, weight.shape[1])
    if isinstance(layer, nn.Embedding):
        new: nn.Module = QuantEmbedding(packed, layer.padding_idx, dtype)
    else:
        assert isinstance(layer, nn.Linear), "every matrix belongs to an embedding or a linear layer"
        new = QuantLinear(packed, layer.bias)
    setattr(model.get_submodule(owner), attribute, new)


def _read(weight: Weight | Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.detach().to(dtype, copy=True)
    if weight.format.torch is not None and _DTYPES[weight.format.torch] == dtype:
        return torch.from_numpy(np.require(weight.rows(), requirements="W")).view(dtype).view(weight.shape)
    return torch.from_numpy(weight.to_float32()).to(dtype)


def checkpoint_loading(
    kind: type[Model],
    checkpoint: Checkpoint,
    config: LlamaConfig,
    dtype: torch.dtype,
    placement: Placement | dict[str, Any],
    **options: Any,
) -> Loading[Model]:
    """Returns the description of a model to load from an open checkpoint; `options` are further fields of `Loading`."""
    return Loading(kind, checkpoint.tensors, config, dtype, placement, checkpoint.path, **options)
