"""The settings of a call of `generate()`: the model's, those of the passed configuration, and the call's keywords."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import torch

from puna.config import GenerationConfig, GenerationMode, LlamaConfig
from puna.config.generation.checks import minor_issues
from puna.errors import RequestError, show, suggestion

_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

_CACHES = (
    None, "dynamic", "static", "offloaded", "offloaded_static", "quantized", "sliding_window", "hybrid",
    "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked",
)  # fmt: skip
"""The caches of transformers. They differ in speed and memory; here all are the same cache, without quantisation."""

_UNSUPPORTED = {
    "use_mtp": "the model has no layers that predict several tokens",
    "speculation_type": "pass an assistant_model instead",
}
"""Settings that would change the result or need other weights, with the remedy."""

_NEVER_NONE = (
    "max_length", "do_sample", "num_beams", "num_beam_groups", "num_return_sequences", "return_dict_in_generate",
)  # fmt: skip
"""Fields for which None means the default; for a filter or penalty, None disables it."""


class ConfiguredModel(Protocol):
    """A model with its configurations."""

    config: LlamaConfig
    generation_config: GenerationConfig


def merge_settings(
    model: ConfiguredModel,
    config: Any,
    options: Mapping[str, Any],
    use_model_defaults: bool | None = None,
) -> GenerationConfig:
    """Returns the settings of a call, as a new object.

    Args:
        model: its settings are the defaults.
        config: the argument `generation_config`: None, a `GenerationConfig`, or one of transformers. The model's token
            ids complete it; other settings of the model are used only with `use_model_defaults`.
        options: the keywords of the call that are settings; they override all others.
        use_model_defaults: whether the model's settings are used where `config` sets none.

    Raises:
        RequestError: if a setting is not supported.
        ConfigError: if a setting is out of range, or settings contradict each other.
    """
    settings = _base_settings(model, config, use_model_defaults)
    ineffective = minor_issues(vars(settings))
    options = {name: value for name, value in options.items() if name != "max_length" or value is not None}
    settings.update(allow_custom_entries=True, **options)
    if "max_length" in options and options.get("max_new_tokens") is None:
        settings.max_new_tokens = None
    if settings.use_cache is None:
        settings.use_cache = model.config.use_cache
    defaults = GenerationConfig()
    for name in _NEVER_NONE:
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(defaults, name))
    fields = {*options, *ineffective} - ({"temperature"} if settings.temperature == 0 else set())
    settings.validate(user_set_attributes=fields)
    if settings.temperature == 0 or settings.force_words_ids is not None:
        settings.do_sample = False
        settings.validate(user_set_attributes=())
    _check_supported(settings)
    if "max_length" in options and options.get("max_new_tokens") is not None:
        logging.getLogger(__name__).warning(
            "generate() was called with max_new_tokens (%s) and max_length (%s); max_new_tokens takes precedence",
            settings.max_new_tokens,
            settings.max_length,
        )
    return settings


def _base_settings(model: ConfiguredModel, config: Any, use_model_defaults: bool | None) -> GenerationConfig:
    """Returns a copy of `config`, completed from the model's settings; if it is None, a copy of the model's."""
    own = model_settings(model)
    if config is None:
        return copy.deepcopy(own)
    if not isinstance(config, GenerationConfig):
        if not hasattr(config, "to_dict"):
            raise RequestError(f"generation_config is {show(config)}; it must be a GenerationConfig")
        config = GenerationConfig.from_dict(config.to_dict())
    settings: GenerationConfig = copy.deepcopy(config)
    names = own.assigned if use_model_defaults else ()
    for name in (*_SPECIAL_TOKENS, *names):
        if getattr(settings, name, None) is None or name not in settings.assigned:
            setattr(settings, name, getattr(own, name))
    return settings


def model_settings(model: ConfiguredModel) -> GenerationConfig:
    """Returns the model's generation configuration.

    An unchanged generation configuration that was derived from the model's configuration is derived again if the latter
    has changed, because scripts set `model.config.max_length` to control generation.
    """
    own = model.generation_config
    if own.follows_model:
        current = GenerationConfig.from_model_config(model.config)
        if current != own:
            warnings.warn(
                "the model's configuration was changed to control generation; this still works, but set "
                "model.generation_config instead",
                stacklevel=5,
            )
            model.generation_config = own = current
    return own


def _check_supported(settings: GenerationConfig) -> None:
    for name, remedy in _UNSUPPORTED.items():
        if (value := getattr(settings, name)) not in (None, False):
            raise RequestError(f"{name} is {show(value)}, which is not supported; {remedy}")
    if settings.cache_implementation not in _CACHES:
        names = ", ".join(repr(name) for name in _CACHES)
        raise RequestError(
            f"cache_implementation is {show(settings.cache_implementation)}; it must be one of {names}, which all give "
            "the same result"
        )


def check_names(names: Collection[str], known: Collection[str]) -> None:
    """Raises RequestError for a keyword that `generate()` does not have; suggests the nearest name."""
    for name in names:
        if name not in known:
            remedy = suggestion(name, known) or "; remove it"
            raise RequestError(f"generate() has no argument {name!r}, and the model does not use it{remedy}")


def generation_mode(settings: GenerationConfig, assistant: Any = None) -> GenerationMode:
    """Returns the strategy of a call with these settings."""
    return settings.get_generation_mode(assistant)


def is_random(settings: GenerationConfig) -> bool:
    """Returns whether tokens are drawn at random; with temperature 0 they are not, regardless of `do_sample`."""
    return bool(settings.do_sample) and settings.temperature != 0


def choose_generator(
    seed: int | None, generator: torch.Generator | None, device: torch.device
) -> torch.Generator | None:
    """Returns the random generator: `generator`, a new one seeded with `seed`, or None for PyTorch's global one.

    Raises:
        RequestError: if both are given, or the seed is not in PyTorch's range, -2^63 to 2^64 - 1.
    """
    if seed is None:
        return generator
    if generator is not None:
        raise RequestError(f"seed {seed} and a generator were both given; keep one of them")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise RequestError(f"seed is {seed!r}; it must be a whole number from -2^63 to 2^64 - 1")
    return torch.Generator(device).manual_seed(seed)
