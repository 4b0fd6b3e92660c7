"""Decides from `model_type`, `architectures` and the number of experts whether `config.json` is of a LLaMA model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import ConfigError, show

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Keys of mixtures of experts: Mixtral's and Llama 4's, Qwen's and OLMoE's, DeepSeek's, ERNIE's."""


def check_architecture(fields: Mapping[str, Any], model_type: str = "llama") -> list[str]:
    """Checks the content of a `config.json`; returns notes on names that have no effect.

    As in transformers, `model_type` decides. `architectures` often names a wrapper of the training program
    (FSDPLlamaForCausalLM, PeftModelForCausalLM), and counts only if there is no `model_type`.

    Raises:
        ConfigError: the model has another architecture, or is a mixture of experts.
    """
    kind, names = fields.get("model_type"), fields.get("architectures")
    names = [] if names is None else names
    experts = next((key for key in _EXPERTS if type(fields.get(key)) is int and fields[key] > 1), None)
    mixture = "" if experts is None else f"a mixture of {fields[experts]} experts ({experts})"
    if kind not in (None, "llama", model_type):
        of_experts = f", {mixture}" if mixture else ""
        raise ConfigError(f"model_type is {show(kind)}{of_experts}; puna runs only 'llama'")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures is {show(names)}; it must be a list of class names")
    others = [name for name in names if not name.lower().startswith("llama")]
    if others and kind is None:
        raise ConfigError(f"architectures is {str(names)[:200]}; puna runs only the Llama classes")
    if mixture:
        raise ConfigError(f"the model is {mixture}; puna runs only LLaMA models without experts")
    return [f"architectures {', '.join(others)[:200]} ignored, since model_type is {kind!r}"] if others else []
