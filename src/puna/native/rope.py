"""Frequencies of rotary embeddings for the native runtime: the formulas of `puna.model.rope`, without PyTorch.

A test holds both to each other. Types whose frequencies depend on the length are not here: they need another attention.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig
from puna.errors import BackendError

Frequencies = NDArray[np.float32]


def fixed_frequencies(config: LlamaConfig) -> tuple[Frequencies, float]:
    """Returns inv_freq, (head_dim / 2,), and the factor on cosines and sines.

    Raises:
        BackendError: for dynamic and longrope, whose frequencies depend on the length of the context.
    """
    settings = config.rope_parameters
    kind = settings["rope_type"]
    plain = 1.0 / _powers(settings["rope_theta"], config.head_dim)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / np.float32(settings["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, settings), 1.0
    if kind == "yarn":
        return _yarn(plain, settings, config.head_dim)
    raise BackendError(f"the native backend does not run rope type {kind!r} yet; use backend='torch'")


def _powers(theta: float, width: int) -> Frequencies:
    powers: Frequencies = np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    return powers


def _llama3(plain: Frequencies, settings: dict[str, Any]) -> Frequencies:
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] / (2 * math.pi / plain)
    keep = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    blended: Frequencies = (1 - keep) * plain / np.float32(settings["factor"]) + keep * plain
    return blended


def _yarn(plain: Frequencies, settings: dict[str, Any], width: int) -> tuple[Frequencies, float]:
    theta, factor = settings["rope_theta"], settings["factor"]
    original = settings["original_max_position_embeddings"]

    def pair_turning(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(settings.get("beta_fast", 32.0)), pair_turning(settings.get("beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    stretched = np.clip((np.arange(width // 2) - low) / span, 0, 1).astype(np.float32)
    mixed: Frequencies = plain / np.float32(factor) * stretched + plain * (1 - stretched)
    return mixed, _yarn_scale(settings)


def _yarn_scale(settings: dict[str, Any]) -> float:
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0

    mscale, everywhere = settings.get("mscale"), settings.get("mscale_all_dim")
    return temperature(mscale) / temperature(everywhere) if mscale and everywhere else temperature(1.0)
