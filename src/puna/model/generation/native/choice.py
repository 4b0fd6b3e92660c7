"""Chooses how a call of `generate()` computes: natively from the module's weights, or with the PyTorch module.

The native runtime is used if it computes what the module computes; `model.generation_path` names the path of the last
call. The weights are packed once, into a copy of the same size, and again after they have changed.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from puna.backend import page_count
from puna.config import GenerationConfig, GenerationMode, LlamaConfig
from puna.errors import BackendError
from puna.model.generation.loop import Forward, LanguageModel, TorchForward
from puna.model.generation.native.eligibility import (
    reason_of_context,
    reason_of_modules,
    reason_of_parameters,
    settings_of,
)
from puna.model.generation.native.runtime import NativeForward, NativeRuntime
from puna.model.generation.native.weights import WeightState, module_weights
from puna.model.generation.prompt import Prompt
from puna.model.generation.settings import generation_mode
from puna.native import check_supported, machine

_NEED_THE_MODULE = (GenerationMode.CONTRASTIVE_SEARCH, GenerationMode.DOLA_GENERATION)
"""Strategies that use hidden states."""


@dataclass(frozen=True)
class _Packed:
    runtime: NativeRuntime
    settings: tuple[Any, ...]
    state: WeightState


_PACKED: WeakKeyDictionary[nn.Module, _Packed] = WeakKeyDictionary()
_LOCK = Lock()


def _is_enabled(model: nn.Module) -> bool:
    return bool(model.__dict__.get("_native_generation", True))


def _enable(model: nn.Module, value: bool) -> None:
    model._native_generation = value  # type: ignore[assignment]
    if not value:
        with _LOCK:
            _PACKED.pop(model, None)


native_generation = property(
    _is_enabled,
    _enable,
    doc="""Whether `generate()` may use the native runtime, which needs a packed copy of the weights; by default True.

    Assigning False frees the copy (once running calls have ended); True allows the next call to pack it again.
    """,
)


def choose_forward(model: LanguageModel, settings: GenerationConfig, prompt: Prompt, limit: int) -> tuple[Forward, str]:
    """Returns the forward pass of a call that generates up to `limit` tokens, and the name of its path.

    The name is "native", or "torch: " and the reason.
    """
    reason = _reason_of_call(settings, prompt) or reason_of_context()
    if reason is None and isinstance(model, nn.Module):
        runtime = _runtime(model, model.config)
        if isinstance(runtime, NativeRuntime):
            pages = sum(page_count(tokens + limit) for tokens in prompt.mask.sum(1).tolist())
            if pages <= runtime.pool.count:
                return NativeForward(runtime, model.config, model.dtype, prompt.embeds), "native"
            runtime = "the keys and values do not fit in memory"
        reason = runtime
    return TorchForward(model, prompt, settings.use_cache), f"torch: {reason}"


def _reason_of_call(settings: GenerationConfig, prompt: Prompt) -> str | None:
    """Returns why the call itself needs the PyTorch module, or None."""
    if not settings.use_cache:
        return "use_cache is False"
    if prompt.cache is not None:
        return "past_key_values is given"
    if prompt.positions is not None:
        return "position_ids is given"
    if prompt.extra:
        return f"{', '.join(prompt.extra)} is given"
    for name in ("output_attentions", "output_hidden_states"):
        if settings.return_dict_in_generate and getattr(settings, name):
            return f"{name} is True"
    if generation_mode(settings) in _NEED_THE_MODULE:
        return f"{generation_mode(settings).value} uses hidden states"
    if prompt.mask.device.type != "cpu":
        return f"the prompt is on the device {prompt.mask.device}"
    if not prompt.mask[:, -1].all():
        return "a prompt ends in padding"
    return None


def _runtime(model: nn.Module, config: LlamaConfig) -> NativeRuntime | str:
    """Returns the runtime with the module's weights, or the reason why there is none. Outdated weights are freed."""
    if not getattr(model, "native_generation", True):
        return "model.native_generation is False"
    with _LOCK:
        packed = _PACKED.pop(model, None)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        reason = reason_of_modules(model) or reason_of_parameters(model, parameters, config)
        if reason is not None:
            return reason
        try:
            check_supported(config)
            threads = min(torch.get_num_threads(), machine().physical_cores)
            key = (settings_of(model, config), threads, os.getpid())
            state = WeightState(parameters)
            if packed is None or packed.settings != key or packed.state != state:
                packed = None  # frees the memory first
                packed = _Packed(NativeRuntime(copy.deepcopy(config), module_weights(parameters), threads), key, state)
        except BackendError as exc:
            return str(exc)
        _PACKED[model] = packed
        return packed.runtime
