"""The settings of a call of `generate()`: a generation configuration overridden by the call's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from puna.config import GenerationConfig, GenerationMode
from puna.errors import RequestError


def merge_settings(base: GenerationConfig, arguments: Mapping[str, Any], others: Mapping[str, Any]) -> GenerationConfig:
    """Returns the configuration overridden by the call's arguments.

    Args:
        base: the defaults.
        arguments: the arguments in the signature of `generate()`; None keeps the default.
        others: the arguments that are not in the signature.

    Raises:
        RequestError: if an argument is unknown, or a setting is not supported.
        ConfigError: if a setting is out of range.
    """
    for name in others:
        if name not in base.to_dict():
            raise RequestError(f"generate() has no argument {name!r}; remove it")
    overrides = {name: value for name, value in {**arguments, **others}.items() if value is not None}
    fields = base.to_dict()
    if "max_length" in overrides and "max_new_tokens" not in overrides:
        fields.pop("max_new_tokens", None)
    settings: GenerationConfig = GenerationConfig.from_dict({**fields, **overrides})
    if settings.num_beams > 1:
        raise RequestError(f"num_beams is {settings.num_beams}; it must be 1, since beam search is not supported")
    if settings.num_return_sequences > 1 and not is_random(settings):
        raise RequestError(
            f"num_return_sequences is {settings.num_return_sequences}, but without sampling all texts would be equal; "
            "set do_sample=True and a temperature above 0"
        )
    return settings


def generation_mode(settings: GenerationConfig) -> GenerationMode:
    """Returns the strategy of a call with these settings."""
    return GenerationMode.SAMPLE if is_random(settings) else GenerationMode.GREEDY_SEARCH


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
