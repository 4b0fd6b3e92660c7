"""Selects the tensors that a method changes, by the rules of PEFT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from puna.adapters import Adapter
from puna.adapters.patterns import is_target, pattern_value
from puna.adapters.patterns import matches as matches_name
from puna.adapters.slots import model_tensors, saved_slots
from puna.checkpoint.names import EMBEDDING, SCORE
from puna.checkpoint.weight import RowSource
from puna.config import LlamaConfig
from puna.errors import ConfigError, show
from puna.training.methods.attach import train_copy
from puna.training.methods.base import Trainable
from puna.training.settings import TrainingSettings
from puna.training.settings.adapters import Layers

Shapes = Mapping[str, tuple[int, ...]]


def tensors_of(trainable: Trainable) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of a model by Hugging Face's names, with the head even if it is tied."""
    return model_tensors(trainable.model.config, "classification" if trainable.model.head == "classification" else "lm")


def layer_numbers(layers: Layers, config: LlamaConfig) -> list[int]:
    """Returns the numbers of the layers that train: all, the last n, or the listed ones.

    Raises:
        ConfigError: the model has no such layer.
    """
    count = config.num_hidden_layers
    if layers is None:
        return list(range(count))
    numbers = list(range(count - layers, count)) if isinstance(layers, int) else sorted(set(layers))
    if not numbers or numbers[0] < 0 or numbers[-1] >= count:
        raise ConfigError(
            f"layers is {show(layers)}; the model has {count} layers: give the number of the last layers that train, 1 "
            f"to {count}, or a list of numbers from 0 to {count - 1}"
        )
    return numbers


def select_matrices(trainable: Trainable, settings: TrainingSettings, targets: Sequence[str] | str) -> Shapes:
    """Returns the matrices that the targets select, with their shapes (O, I).

    Args:
        targets: "all-linear", names of modules or their ends, or a regular expression of complete names.

    Raises:
        ConfigError: a name or the expression selects no matrix.
    """
    shapes = {name: shape for name, shape in tensors_of(trainable).items() if len(shape) == 2 and name != SCORE}
    rules: dict[str, Any] = {}
    if targets == "all-linear":
        targets = sorted({name.split(".")[-2] for name in shapes if name.startswith("model.layers.")})
    numbers = layer_numbers(settings.layers, trainable.model.config)
    exclude = [*(settings.exclude or ()), *(settings.modules_to_save or ())]
    selected: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        rules["target_modules"] = target if isinstance(targets, str) else [target]
        matches = {name for name in shapes if is_target(rules, name.removesuffix(".weight"))}
        if not matches:
            raise ConfigError(
                f"targets has {show(target)}, which selects no matrix of the model; its modules are named like "
                f"{', '.join(sorted({name.split('.')[-2] for name in shapes}))}"
            )
        selected |= {name for name in matches if _layer(name) is None or _layer(name) in numbers}
    selected = {name for name in selected if not matches_name("exclude", exclude, name.removesuffix(".weight"))}
    if EMBEDDING in selected:
        raise ConfigError(
            "targets selects embed_tokens, for which puna trains no low-rank change; set modules_to_save to train the "
            "complete matrix, or trainable_tokens for some rows"
        )
    if not selected:
        raise ConfigError("targets, layers, exclude and modules_to_save together select no matrix; change one of them")
    return {name: shape for name, shape in shapes.items() if name in selected}


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def pattern_table(setting: str, values: Mapping[str, Any] | None, default: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns the value of a pattern setting for each matrix, and the default for those without a match.

    Raises:
        ConfigError: a pattern matches no matrix.
    """
    modules = {name: name.removesuffix(".weight") for name in names}
    for pattern in values or ():
        if not any(pattern_value({setting: {pattern: True}}, setting, module, False) for module in modules.values()):
            raise ConfigError(f"{setting} has the pattern {show(pattern)}, which matches no changed matrix; remove it")
    rules = {setting: dict(values or {})}
    return {name: pattern_value(rules, setting, module, default) for name, module in modules.items()}


def train_saved(trainable: Trainable, settings: TrainingSettings, start: Adapter | None) -> None:
    """Trains copies of the modules of `modules_to_save`, and of a classification head.

    Raises:
        ConfigError: the model has no module of a name.
    """
    shapes = tensors_of(trainable)
    names = [SCORE] if SCORE in shapes else []
    for module in settings.modules_to_save or ():
        slots = saved_slots({"modules_to_save": [module]}, trainable.model.config, shapes)
        matches = [slot.weight for slot in slots]
        if not matches:
            raise ConfigError(
                f"modules_to_save has {show(module)}, which the model does not have; a LLaMA has embed_tokens, norm, "
                "lm_head or score, and the modules of its layers"
            )
        names += [name for name in matches if name not in names]
    stored = {} if start is None else {n: s for n, s in start.replaced.items() if n not in start.low_rank}
    for name in names + [name for name in stored if name not in names]:
        train_copy(trainable, name, _values(stored[name]) if name in stored else None)


def _values(source: RowSource) -> Tensor:
    return torch.from_numpy(source.format.decode(source.data).reshape(source.shape))
