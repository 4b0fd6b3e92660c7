"""Sampling settings in GGUF metadata, `general.sampling.*`, as fields of `GenerationConfig`.

Names: `SAMPLING_*` in gguf-py/gguf/constants.py of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from puna.checkpoint.gguf_keys import GgufKeys
from puna.config import GenerationConfig

SAMPLING_PREFIX = "general.sampling."

_FIELDS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
_FILTERS = ("top_k", "top_p", "min_p")


def read_sampling(keys: GgufKeys) -> dict[str, Any]:
    """Returns the fields that the metadata sets. Other keys of the group keep their names, for `ignored_settings`.

    A file samples if it has a positive temperature, or a filter without a temperature.
    """
    names = {key.removeprefix(SAMPLING_PREFIX) for key in keys.metadata if key.startswith(SAMPLING_PREFIX)}
    fields: dict[str, Any] = {
        field: keys.number(SAMPLING_PREFIX + name) for name, field in _FIELDS.items() if name in names
    }
    if fields.keys() & {"temperature", *_FILTERS}:
        temperature = max(0.0, fields.get("temperature", 1.0))
        top_k = max(0, int(fields.get("top_k", 0)))  # GenerationConfig's default would be 50
        fields |= {"temperature": temperature, "top_k": top_k, "do_sample": temperature > 0}
    return fields | {SAMPLING_PREFIX + name: keys.metadata[SAMPLING_PREFIX + name] for name in names - _FIELDS.keys()}


def write_sampling(config: GenerationConfig) -> dict[str, int | float]:
    """Returns the metadata for a configuration that samples; empty otherwise.

    All filters are written, since llama.cpp has its own defaults for those that are not.
    """
    if not config.do_sample:
        return {}
    values: dict[str, int | float] = {
        "temp": float(config.temperature),
        "top_k": max(0, config.top_k),
        "top_p": float(config.top_p),
        "min_p": float(config.min_p or 0.0),
    }
    if config.repetition_penalty != 1.0:
        values |= {"penalty_repeat": float(config.repetition_penalty), "penalty_last_n": -1}
    return {SAMPLING_PREFIX + name: value for name, value in values.items()}


def sampling_fields(config: GenerationConfig) -> frozenset[str]:
    """Returns the fields of `config` that `write_sampling` writes."""
    return frozenset(("do_sample", *_FIELDS.values())) if config.do_sample else frozenset()
