"""Rotary position embeddings: every rope type of LLaMA checkpoints, in the half-split layout.

Legend: B batch, T tokens, S keys (cached and new), E head width. A head is E/2 pairs (x[i], x[i + E/2]); pair i of the
token at position p is rotated by the angle p * inv_freq[i] (Su et al., RoFormer, arXiv:2104.09864). Angles and
rotations are computed in float32 for every dtype, as in Meta's code.

There are two cases:

* default, linear, yarn, llama3: the frequencies are fixed. Keys are rotated once and cached rotated (`Rotation`).
* dynamic, longrope: the frequencies depend on the length of the context. The query at position p and all its keys are
  rotated with the frequencies for length p + 1, so keys are cached unrotated (`LengthRotation`).
  A token's result then depends only on the tokens before it: not on the rest of the batch, on how the prompt is split
  into chunks, or on earlier prompts. (transformers uses one length for all tokens of a call and keeps cached keys.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from puna.config import LlamaConfig
from puna.model.cache import KVCache

Angles = tuple[Tensor, Tensor]
"""cos and sin, each (B, 1, tokens, E/2), float32."""


@dataclass(frozen=True)
class Rotation:
    """Fixed frequencies: the angles of the new tokens, for their queries and their keys."""

    angles: Angles
    key_positions: None = None  # cached keys are rotated already


@dataclass(frozen=True)
class LengthRotation:
    """Frequencies by length: for each run of queries with equal frequencies, the angles of its queries and all keys."""

    runs: tuple[tuple[slice, Tensor], ...]  # slice of the T queries, and their inv_freq (B, 1, E/2)
    positions: Tensor  # (B, T)
    key_positions: Tensor  # (B, S)
    scaling: float

    def __iter__(self) -> Iterator[tuple[slice, Angles, Angles]]:
        """Yields (slice of the queries, their angles, angles of all keys); lazily, since the keys' angles are large."""
        for queries, inv_freq in self.runs:
            yield (
                queries,
                angles(self.positions[:, queries], inv_freq, self.scaling),
                angles(self.key_positions, inv_freq, self.scaling),
            )


def angles(positions: Tensor, inv_freq: Tensor, scaling: float) -> Angles:
    """Returns the scaled cos and sin of positions, (B, tokens), times inv_freq, (E/2) or (B, 1, E/2)."""
    phase = positions[:, :, None].float() * inv_freq  # (B, tokens, E/2)
    phase = phase[:, None]  # (B, 1, tokens, E/2)
    return phase.cos() * scaling, phase.sin() * scaling


def rotate(x: Tensor, cos_and_sin: Angles) -> Tensor:
    """Returns x, (B, heads, tokens, E), with rotated pairs."""
    cos, sin = cos_and_sin
    first, second = x.float().chunk(2, dim=-1)  # (B, heads, tokens, E/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)  # shape of x


class LlamaRotaryEmbedding(nn.Module):
    """Computes from positions the angles that queries and keys are rotated by."""

    inv_freq: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        settings = config.rope_parameters
        self.kind: str = settings["rope_type"]
        self.settings = settings
        self.original = int(settings.get("original_max_position_embeddings", config.max_position_embeddings))
        inv_freq, self.scaling = _FREQUENCIES[self.kind](settings, config)
        self.by_length = self.kind == "dynamic" or inv_freq.dim() == 2
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LlamaRotaryEmbedding:
        """Moves the frequencies with the model, but keeps them in float32: `model.to(bfloat16)` must not round them."""
        float32 = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = float32.to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor, cache: KVCache) -> Rotation | LengthRotation:
        """Returns the rotation of new tokens at `positions`, (B, T), which follow the tokens in the cache."""
        if not self.by_length:
            return Rotation(angles(positions, self.inv_freq, self.scaling))
        keys = torch.cat((cache.token_positions(positions), positions), dim=1)  # (B, S)
        return LengthRotation(tuple(self._runs(positions)), positions, keys, self.scaling)

    def _runs(self, positions: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Splits the queries, which have positions (B, T), wherever the frequencies of any row change."""
        lengths = positions + 1  # (B, T)
        # Queries in the same group have equal frequencies.
        group = lengths > self.original if self.kind == "longrope" else lengths.clamp(min=self.original)
        changes = (group[:, 1:] != group[:, :-1]).any(dim=0).nonzero().flatten() + 1
        edges = [0, *changes.tolist(), positions.shape[1]]
        for start, stop in pairwise(edges):
            yield slice(start, stop), self._for_length(lengths[:, start : start + 1, None])

    def _for_length(self, length: Tensor) -> Tensor:
        """Returns inv_freq, (B, 1, E/2), for contexts of `length`, (B, 1, 1)."""
        if self.kind == "longrope":
            short, long = self.inv_freq
            return torch.where(length > self.original, long, short)
        # "NTK-aware" scaling that grows with the length (emozilla, 2023, after bloc97; also in YaRN, arXiv:2309.00071,
        # appendix B.2): the base is multiplied by (factor * L / M - (factor - 1)) ^ (E / (E - 2)); M = original.
        width = 2 * self.inv_freq.shape[-1]
        excess = (length - self.original).clamp(min=0).float() / self.original
        stretch = (1 + self.settings["factor"] * excess) ** (width / max(width - 2, 1))
        return 1.0 / _powers(self.settings["rope_theta"] * stretch, width, self.inv_freq.device)


def _powers(theta: float | Tensor, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns theta^(2i/E), (..., E/2). The order of operations is that of transformers, so that rounding is the same.

    The device is explicit because models may be built under `torch.device("meta")`, but frequencies always need values.
    """
    powers: Tensor = theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
    return powers


def _default(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    return 1.0 / _powers(settings["rope_theta"], config.head_dim), 1.0


def _linear(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    """Position interpolation (arXiv:2306.15595)."""
    return 1.0 / _powers(settings["rope_theta"], config.head_dim) / settings["factor"], 1.0


def _llama3(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    """Llama 3.1's scaling (Meta's llama-models, models/llama3/model.py, `apply_scaling`).

    A frequency with at least `high` full turns in the original context is kept, one with at most `low` turns is divided
    by the factor, and one between is interpolated.
    """
    inv_freq = 1.0 / _powers(settings["rope_theta"], config.head_dim)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] / (2 * math.pi / inv_freq)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * inv_freq / settings["factor"] + keep * inv_freq, 1.0


def _yarn(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    """YaRN (arXiv:2309.00071), sections 3.2 (by parts) and 3.4 (temperature, here a factor on cos and sin)."""
    theta, width, factor = settings["rope_theta"], config.head_dim, settings["factor"]
    original = settings["original_max_position_embeddings"]

    def pair_index(turns: float) -> float:
        """Returns the (fractional) index of the pair that rotates `turns` times in the original context."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_index(settings.get("beta_fast", 32.0))
    high = pair_index(settings.get("beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001  # avoids division by 0, as transformers does
    interpolated = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    powers = _powers(theta, width)
    inv_freq = 1.0 / (factor * powers) * interpolated + 1.0 / powers * (1 - interpolated)
    return inv_freq, _yarn_scaling(settings)


def _yarn_scaling(settings: dict[str, Any]) -> float:
    """sqrt(1/t) = 0.1 ln(factor) + 1 (YaRN, equation 22); mscale and mscale_all_dim are DeepSeek's additions."""
    attention_factor = settings.get("attention_factor")
    if attention_factor is not None:
        return float(attention_factor)

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0

    mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)


def _longrope(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    """LongRoPE (arXiv:2402.13753): one factor per pair, in two sets: for contexts up to the original one, and longer.

    Returns the frequencies as (2, E/2): short, long; or as (E/2) if both sets are equal, as in configurations
    read from GGUF files with one divisor per frequency. `LlamaConfig` has already set `attention_factor`.
    """
    factors = torch.tensor([settings["short_factor"], settings["long_factor"]], dtype=torch.float32, device="cpu")
    inv_freq = 1.0 / (factors * _powers(settings["rope_theta"], config.head_dim))
    return inv_freq[0] if torch.equal(*factors) else inv_freq, float(settings["attention_factor"])


_FREQUENCIES: dict[str, Callable[[dict[str, Any], LlamaConfig], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,  # the frequencies for lengths up to the original context
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
"""For each rope type, a function that returns (inv_freq, factor on cos and sin); inv_freq is (E/2) or (2, E/2)."""
