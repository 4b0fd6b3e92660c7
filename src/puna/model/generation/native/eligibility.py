"""Whether `generate()` may use the native runtime: only if it computes exactly what the PyTorch module computes.

Each function returns the first reason to use PyTorch instead, or None.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from puna.checkpoint.names import expected_tensors
from puna.config import LlamaConfig
from puna.config.pruning import pruned_heads
from puna.model.checks import is_traced
from puna.model.generation.native.weights import FORMAT_NAMES
from puna.model.llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaModel, LlamaRMSNorm
from puna.model.rope import LlamaRotaryEmbedding

_MODULES = (
    LlamaModel, LlamaDecoderLayer, LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, nn.ModuleList,
    nn.Linear, nn.Embedding, nn.SiLU,
)  # fmt: skip
_METHODS = ("forward", "logits", "embed", "step", "hidden", "prepare_inputs_for_generation", "__call__")
"""Methods of the models that the native runtime replaces."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def reason_of_context() -> str | None:
    """Checks the state of PyTorch in this thread."""
    if torch.is_grad_enabled():
        return "gradients are enabled"
    if is_traced():
        return "the call is being traced"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled"
    functions = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    modes = _get_current_dispatch_mode_stack() + [mode for mode in functions if not isinstance(mode, DeviceContext)]
    return f"{type(modes[0]).__name__} observes PyTorch's operations" if modes else None


def reason_of_modules(model: nn.Module) -> str | None:
    """Checks that the modules compute what puna's classes compute: no other classes, hooks or replaced methods."""
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks for all modules"
    for name, module in model.named_modules():
        where = name or type(module).__name__
        if module is not model and type(module) not in _MODULES:
            return f"{where} is a {type(module).__name__}"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{where} has hooks"
        replaced = next(_replaced_methods(module), None)
        if replaced is not None:
            return f"{where} has another {replaced}()"
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            return f"{where} has max_norm"
    return None


def _replaced_methods(module: nn.Module) -> Iterator[str]:
    """Yields the names of methods that belong to the instance, to a subclass of puna's class, or to another module."""
    cls = type(module)
    yield from (name for name, value in vars(module).items() if callable(value) and hasattr(cls, name))
    for name in _METHODS:
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if owner is None:
            continue
        function = vars(owner)[name]
        ours = owner.__module__.startswith(("puna.model.", "torch.nn.modules."))
        if not ours or getattr(function, "__globals__", None) is not vars(sys.modules[owner.__module__]):
            yield name


def reason_of_parameters(model: nn.Module, parameters: Mapping[str, Tensor], config: LlamaConfig) -> str | None:
    """Checks names, shapes and types of the parameters, and the settings that the modules have copied."""
    if pruned_heads(config):
        return "attention heads were pruned"
    expected = dict(expected_tensors(config, "lm")) | {"lm_head.weight": (config.vocab_size, config.hidden_size)}
    for name in expected.keys() ^ parameters.keys():
        return f"the parameter {name} is {'missing' if name in expected else 'additional'}"
    dtype = next(iter(parameters.values())).dtype
    for name, value in parameters.items():
        if type(value) is not nn.Parameter or value.layout != torch.strided:
            return f"{name} is a {type(value).__name__}"
        if tuple(value.shape) != expected[name]:
            return f"{name} has shape {tuple(value.shape)}"
        if value.device.type != "cpu":
            return f"{name} is on the device {value.device}"
        if value.dtype not in FORMAT_NAMES or value.dtype != dtype:
            return f"{name} is of type {value.dtype}"
    return next(_different_settings(model, config), None)


def _different_settings(model: nn.Module, config: LlamaConfig) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, LlamaAttention) and module.training and module.dropout:
            yield f"{name} has dropout in training"
        if isinstance(module, LlamaAttention) and module.head_dim != config.head_dim:
            yield f"{name} has another head_dim than the configuration"
        if isinstance(module, LlamaRMSNorm) and module.eps != config.rms_norm_eps:
            yield f"{name} has another eps than the configuration"
        if isinstance(module, LlamaRotaryEmbedding) and rotary_settings(module) != rotary_settings(
            LlamaRotaryEmbedding(config)
        ):
            yield f"{name} has other settings than the configuration"


def settings_of(model: nn.Module, config: LlamaConfig) -> tuple[Any, ...]:
    """Returns everything except the weights that determines the results of the model."""
    rotary = next(module for module in model.modules() if isinstance(module, LlamaRotaryEmbedding))
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return (*rotary_settings(rotary), *heads, config.rms_norm_eps)


def rotary_settings(rotary: LlamaRotaryEmbedding) -> tuple[Any, ...]:
    """Returns everything that determines the angles."""
    frequencies = rotary.inv_freq.tolist()
    return rotary.by_length, rotary.original, rotary.scaling, rotary.theta, rotary.factor, frequencies
