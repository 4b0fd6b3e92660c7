"""Frequencies of rotary embeddings for every rope type, by position; both implementations of the forward pass use them.

Pair i of a head of width E turns by the angle position * inv_freq[i] (Su et al., RoFormer, arXiv:2104.09864). With
dynamic and longrope, the frequencies depend on the length of the context: the query at position p and all its keys use
those of length p + 1, so keys are cached unrotated. A token's result then depends only on the tokens before it: not on
the rest of the batch, on how the prompt is split into chunks, or on earlier prompts. (transformers uses one length for
all tokens of a call and keeps cached keys.) Needs NumPy, unlike the rest of the package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.config.llama import LlamaConfig

Frequencies = NDArray[np.float32]


class RotaryFrequencies:
    """The rotary frequencies of a model.

    Attributes:
        fixed: inv_freq, (head_dim / 2,), for contexts up to `original`; for all contexts unless `by_length`.
        long: with longrope, inv_freq of longer contexts; None if there is one set for all contexts.
        original: the length of the original context.
        by_length: whether the frequencies depend on the length of the context.
        scale: factor on cosines and sines.
    """

    def __init__(self, config: LlamaConfig) -> None:
        settings = config.rope_parameters
        self._settings = settings
        self._width = config.head_dim
        self._kind: str = settings["rope_type"]
        self.original = int(settings.get("original_max_position_embeddings", config.max_position_embeddings))
        self.fixed, self.scale = _fixed_frequencies(config)
        self.long: Frequencies | None = None
        if self._kind == "longrope" and settings["short_factor"] != settings["long_factor"]:
            self.long = _longrope(settings["long_factor"], settings, self._width)
        self.by_length = self._kind == "dynamic" or self.long is not None

    def runs(self, start: int, count: int) -> Iterator[tuple[int, int, Frequencies]]:
        """Splits `count` tokens from position `start` on into runs with equal frequencies.

        Yields (first, end, inv_freq (head_dim / 2,)) of the run with tokens first to end - 1, counted from `start`.
        """
        if not self.by_length:
            yield 0, count, self.fixed
            return
        first_beyond = min(max(self.original - start, 0), count)  # first token beyond the original context
        edges = [0, *([first_beyond] if 0 < first_beyond < count else []), count]
        if self._kind == "dynamic":
            edges = [*([0] if first_beyond else []), *range(first_beyond, count + 1)]
        for first, last in pairwise(edges):
            yield first, last, self._for_length(start + first + 1)

    def _for_length(self, length: int) -> Frequencies:
        if length <= self.original:
            return self.fixed
        if self.long is not None:
            return self.long
        # dynamic: "NTK-aware" scaling that grows with the length L (emozilla, 2023, after bloc97; also in YaRN,
        # arXiv:2309.00071, appendix B.2). The base is multiplied by (factor * L / M - (factor - 1)) ^ (E / (E - 2));
        # M = original.
        excess = np.float32(length - self.original) / np.float32(self.original)
        power = np.float32(self._width / max(self._width - 2, 1))
        stretch = (np.float32(1) + np.float32(self._settings["factor"]) * excess) ** power
        inv_freq: Frequencies = np.float32(1) / _powers(np.float32(self._settings["rope_theta"]) * stretch, self._width)
        return inv_freq


def _fixed_frequencies(config: LlamaConfig) -> tuple[Frequencies, float]:
    """Returns inv_freq, (head_dim / 2,), for contexts up to the original one, and the factor on cosines and sines."""
    settings = config.rope_parameters
    kind = settings["rope_type"]
    plain = 1.0 / _powers(settings["rope_theta"], config.head_dim)
    if kind == "linear":  # position interpolation (arXiv:2306.15595)
        return plain / np.float32(settings["factor"]), 1.0
    if kind == "llama3":
        return _llama3(plain, settings), 1.0
    if kind == "yarn":
        return _yarn(settings, config.head_dim)
    if kind == "longrope":
        return _longrope(settings["short_factor"], settings, config.head_dim), float(settings["attention_factor"])
    assert kind in ("default", "dynamic"), "LlamaConfig accepts no other rope type"
    return plain, 1.0


def _longrope(factors: list[float], settings: dict[str, Any], width: int) -> Frequencies:
    """LongRoPE (arXiv:2402.13753): one factor per pair; `LlamaConfig` has already set `attention_factor`."""
    inv_freq: Frequencies = np.float32(1) / (np.array(factors, np.float32) * _powers(settings["rope_theta"], width))
    return inv_freq


def _powers(theta: float | np.float32, width: int) -> Frequencies:
    """Returns theta^(2i/E), (E/2,).

    Exponents are rounded to float32 and powers are correctly rounded, so that the values are those of transformers on
    every machine: NumPy's float32 powers depend on the processor and are one unit off in up to a quarter of the cases.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers: Frequencies = (np.float64(theta) ** exponents.astype(np.float64)).astype(np.float32)
    return powers


def _llama3(plain: Frequencies, settings: dict[str, Any]) -> Frequencies:
    """Llama 3.1's scaling (Meta's llama-models, models/llama3/model.py, `apply_scaling`).

    A frequency with at least `high` full turns in the original context is kept, one with at most `low` turns is divided
    by the factor, and one between is interpolated.
    """
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    # PyTorch, and so transformers, divides a number by a tensor in two steps, each of which rounds.
    wavelength = np.float32(2 * math.pi) * (np.float32(1) / plain)
    turns = np.float32(settings["original_max_position_embeddings"]) * (np.float32(1) / wavelength)
    keep = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)
    blended: Frequencies = (1 - keep) * plain / np.float32(settings["factor"]) + keep * plain
    return blended


def _yarn(settings: dict[str, Any], width: int) -> tuple[Frequencies, float]:
    """YaRN (arXiv:2309.00071), sections 3.2 (by parts) and 3.4 (temperature, here a factor on cos and sin)."""
    theta, factor = settings["rope_theta"], settings["factor"]
    original = settings["original_max_position_embeddings"]

    def pair_index(turns: float) -> float:
        """Returns the (fractional) index of the pair that rotates `turns` times in the original context."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_index(settings.get("beta_fast", 32.0)), pair_index(settings.get("beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001  # avoids division by 0, as transformers does
    ramp = (np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(span)
    interpolated = np.clip(ramp, 0, 1).astype(np.float64)
    powers = _powers(theta, width).astype(np.float64)
    blended: Frequencies = ((interpolated / factor + (1 - interpolated)) / powers).astype(np.float32)
    return blended, _yarn_scale(settings)


def _yarn_scale(settings: dict[str, Any]) -> float:
    """sqrt(1/t) = 0.1 ln(factor) + 1 (YaRN, equation 22); mscale and mscale_all_dim are DeepSeek's additions."""
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0

    mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)
