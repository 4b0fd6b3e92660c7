"""Frequencies of rotary embeddings for the native runtime: the formulas of `puna.model.rope` in NumPy.

Tests compare the two modules. `puna.model.rope` cites the sources. With dynamic and longrope, the frequencies depend on
the length of the context: the query at position p uses those of length p + 1, and keys are cached unrotated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig

Frequencies = NDArray[np.float32]


class Rope:
    """The rotary frequencies of a model, by position.

    Attributes:
        by_length: whether the frequencies depend on the length of the context.
        scale: factor on cosines and sines.
    """

    def __init__(self, config: LlamaConfig) -> None:
        settings = config.rope_parameters
        self._settings = settings
        self._width = config.head_dim
        self._kind: str = settings["rope_type"]
        self._original = int(settings.get("original_max_position_embeddings", config.max_position_embeddings))
        self._plain, self.scale = _fixed_frequencies(config)
        self._long: Frequencies | None = None
        if self._kind == "longrope" and settings["short_factor"] != settings["long_factor"]:
            self._long = _longrope(settings["long_factor"], settings, self._width)
        self.by_length = self._kind == "dynamic" or self._long is not None

    def runs(self, start: int, count: int) -> Iterator[tuple[int, int, Frequencies]]:
        """Splits `count` tokens from position `start` on into runs with equal frequencies.

        Yields (first, end, inv_freq (head_dim / 2,)) of the run with tokens first to end - 1, counted from `start`.
        """
        if not self.by_length:
            yield 0, count, self._plain
            return
        first_beyond = min(max(self._original - start, 0), count)  # first token beyond the original context
        edges = [0, *([first_beyond] if 0 < first_beyond < count else []), count]
        if self._kind == "dynamic":
            edges = [*([0] if first_beyond else []), *range(first_beyond, count + 1)]
        for first, last in pairwise(edges):
            yield first, last, self._for_length(start + first + 1)

    def _for_length(self, length: int) -> Frequencies:
        if length <= self._original:
            return self._plain
        if self._long is not None:
            return self._long
        # dynamic: the base grows with the length; see LlamaRotaryEmbedding._for_length.
        excess = np.float32(length - self._original) / np.float32(self._original)
        power = np.float32(self._width / max(self._width - 2, 1))
        stretch = (np.float32(1) + np.float32(self._settings["factor"]) * excess) ** power
        inv_freq: Frequencies = np.float32(1) / _powers(np.float32(self._settings["rope_theta"]) * stretch, self._width)
        return inv_freq


def _fixed_frequencies(config: LlamaConfig) -> tuple[Frequencies, float]:
    """Returns inv_freq, (head_dim / 2,), for contexts up to the original one, and the factor on cosines and sines."""
    settings = config.rope_parameters
    kind = settings["rope_type"]
    plain = 1.0 / _powers(settings["rope_theta"], config.head_dim)
    if kind == "linear":
        return plain / np.float32(settings["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, settings), 1.0
    if kind == "yarn":
        return _yarn(plain, settings, config.head_dim)
    if kind == "longrope":
        return _longrope(settings["short_factor"], settings, config.head_dim), float(settings["attention_factor"])
    assert kind in ("default", "dynamic"), "LlamaConfig accepts no other rope type"
    return plain, 1.0


def _longrope(factors: list[float], settings: dict[str, Any], width: int) -> Frequencies:
    inv_freq: Frequencies = np.float32(1) / (np.array(factors, np.float32) * _powers(settings["rope_theta"], width))
    return inv_freq


def _powers(theta: float | np.float32, width: int) -> Frequencies:
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

    def pair_index(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_index(settings.get("beta_fast", 32.0)), pair_index(settings.get("beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001
    stretched = np.clip((np.arange(width // 2) - low) / span, 0, 1).astype(np.float32)
    blended: Frequencies = plain / np.float32(factor) * stretched + plain * (1 - stretched)
    return blended, _yarn_scale(settings)


def _yarn_scale(settings: dict[str, Any]) -> float:
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0

    mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)
