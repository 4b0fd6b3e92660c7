"""Reads adapter_config.json: settings of PEFT that determine an adapter, and refusal of those that puna does not apply.

PEFT adds settings with every release. A setting that is unknown here is refused unless its value is empty: null, false,
an empty list or an empty object.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.adapters.adapter import Kind
from puna.errors import CheckpointError, show
from puna.files import read_json

CONFIG = "adapter_config.json"

METHODS: dict[str, Kind] = {
    "LORA": "lora", "IA3": "ia3", "TRAINABLE_TOKENS": "tokens", "PROMPT_TUNING": "prompt", "P_TUNING": "prompt",
    "PREFIX_TUNING": "prefix", "BOTTLENECK": "bottleneck",
}  # fmt: skip
"""The methods (`peft_type`) that puna applies; "BOTTLENECK" is not one of PEFT."""

_STRINGS, _NAMES, _COUNT, _FLAG = "a list of names", "a name or a list of names", "a positive integer", "true or false"
_TYPES = {
    "target_modules": _NAMES, "exclude_modules": _NAMES, "layers_pattern": _NAMES, "feedforward_modules": _NAMES,
    "modules_to_save": _STRINGS, "target_parameters": _STRINGS,
    "r": _COUNT, "num_virtual_tokens": _COUNT, "bottleneck_size": _COUNT,
    "use_rslora": _FLAG, "use_dora": _FLAG, "lora_bias": _FLAG, "ensure_weight_tying": _FLAG, "fan_in_fan_out": _FLAG,
    "lora_alpha": "a number below 1e30", "rank_pattern": "an object of positive integers",
    "alpha_pattern": "an object of numbers below 1e30",
    "layers_to_transform": "an integer or a list of integers", "token_indices": "a list of integers",
    "trainable_token_indices": "a list of integers, or an object of lists", "bias": "none, all or lora_only",
    "task_type": "a name", "base_model_name_or_path": "a name", "init_lora_weights": "a name, true or false",
    "activation": "relu, silu or gelu",
}  # fmt: skip
"""The settings that puna applies, with their types; null means that the setting is missing."""

_NO_EFFECT = {
    "auto_mapping", "corda_config", "encoder_dropout", "encoder_hidden_size", "encoder_num_layers",
    "encoder_reparameterization_type", "eva_config", "inference_mode", "init_ia3_weights", "init_weights",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "num_attention_heads",
    "num_layers", "num_transformer_submodules", "peft_type", "peft_version", "prefix_projection",
    "prompt_tuning_init", "prompt_tuning_init_text", "qalora_group_size", "revision", "runtime_config", "token_dim",
    "tokenizer_kwargs", "tokenizer_name_or_path", "velora_config",
}  # fmt: skip
"""Settings of training and of saving; puna reads sizes from the tensors."""

_UNSUPPORTED = {
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config", "use_bdlora",
    "use_qalora",
}  # fmt: skip
"""Settings of PEFT 0.21 that puna accepts only if they are empty."""

_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the weights of the base model unchanged."""

_LLAMA_TARGETS = {
    "lora": ["q_proj", "v_proj"], "ia3": ["k_proj", "v_proj", "down_proj"], "tokens": ["embed_tokens"],
    "bottleneck": ["down_proj"],
}  # fmt: skip
"""PEFT's defaults for `target_modules` of a LLaMA."""


def read_peft_config(folder: Path) -> tuple[Kind, dict[str, Any], list[str]]:
    """Returns an adapter's method, its settings without those that are null, and notes on unused settings.

    Raises:
        CheckpointError: a setting is malformed, or changes the result in a way that puna does not apply.
    """
    path = folder / CONFIG
    settings = {name: value for name, value in read_json(path, CheckpointError).items() if value is not None}
    method = settings.get("peft_type")
    kind = METHODS.get(method) if isinstance(method, str) else None
    if kind is None:
        raise CheckpointError(
            f"{path}: peft_type is {show(method)}; puna applies {', '.join(METHODS)}. Merge the adapter with PEFT "
            "(`merge_and_unload()`) if its method can be merged"
        )
    for name, value in settings.items():
        if name in _TYPES and not _has_type(name, value):
            raise CheckpointError(f"{path}: {name} is {show(value)}; it must be {_TYPES[name]}")
        if name not in _TYPES and name not in _NO_EFFECT and value not in (False, [], {}, ""):
            raise CheckpointError(
                f"{path}: {name} is {show(value)}, which puna does not apply. Merge the adapter with PEFT "
                "(`merge_and_unload()`), or delete the setting if it changes no result"
            )
    _check_values(path, settings)
    default = _LLAMA_TARGETS.get(kind, [])
    settings.setdefault("target_modules", [] if settings.get("target_parameters") else default)
    settings.setdefault("feedforward_modules", ["down_proj"])
    return kind, settings, _notes(kind, settings)


def _check_values(path: Path, settings: Mapping[str, Any]) -> None:
    init = settings.get("init_lora_weights")
    if init not in _INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {show(init)}, which changes the weights of the base model. Save the adapter "
            "with save_pretrained(..., path_initial_model_for_weight_conversion=...), which converts it to a LoRA of "
            "the original weights"
        )
    if settings.get("fan_in_fan_out"):
        raise CheckpointError(
            f"{path}: fan_in_fan_out is true, but the matrices of a LLaMA are stored as (outputs, inputs); the adapter "
            "belongs to another architecture"
        )
    if settings.get("use_dora") and settings.get("lora_bias"):
        raise CheckpointError(f"{path}: use_dora and lora_bias are both true, which PEFT refuses; set one to false")


def _notes(kind: Kind, settings: Mapping[str, Any]) -> list[str]:
    used = set(_TYPES) | _NO_EFFECT | _UNSUPPORTED
    unknown = [name for name in settings if name not in used]
    notes = [f"unknown settings of the adapter ignored, since they are empty: {', '.join(unknown)}"] if unknown else []
    if settings.get("prefix_projection"):
        notes.append("the prefix is stored projected, so that prefix_projection has no effect")
    return notes


def _has_type(name: str, value: Any) -> bool:
    kind = _TYPES[name]
    if kind == _FLAG:
        return type(value) is bool
    if kind == _COUNT:
        return _is_count(value)
    if kind in (_NAMES, _STRINGS):
        return (kind == _NAMES and type(value) is str) or _all(value, lambda item: type(item) is str)
    checks: dict[str, bool] = {
        "lora_alpha": _is_number(value),
        "rank_pattern": isinstance(value, dict) and all(map(_is_count, value.values())),
        "alpha_pattern": isinstance(value, dict) and all(map(_is_number, value.values())),
        "layers_to_transform": _is_index(value) or _all(value, _is_index),
        "token_indices": _all(value, _is_index),
        "trainable_token_indices": _all(value, _is_index)
        or (isinstance(value, dict) and all(_all(ids, _is_index) for ids in value.values())),
        "bias": value in ("none", "all", "lora_only"),
        "activation": value in ("relu", "silu", "gelu"),
        "init_lora_weights": type(value) in (bool, str),
    }
    return checks.get(name, type(value) is str)


def _all(value: Any, test: Any) -> bool:
    return isinstance(value, list) and all(test(item) for item in value)


def _is_index(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_count(value: Any) -> bool:
    return _is_index(value) and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30
