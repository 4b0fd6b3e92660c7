"""Rotary position embeddings: every rope type of LLaMA checkpoints, in the half-split layout.

Legend: B batch, T tokens, S keys (cached and new), E head width. A head is E/2 pairs (x[i], x[i + E/2]); pair i of the
token at position p turns by the angle p * inv_freq[i] (Su et al., RoFormer, arXiv:2104.09864). Angles and the turning
itself are float32 in every dtype, as in Meta's code.

Two regimes:

* default, linear, yarn, llama3: the frequencies are fixed. Keys are turned once and cached so (`Rotation`).
* dynamic, longrope: the frequencies depend on the length of the context. The query at position p uses those of length
  p + 1, for itself and for every key it looks at, so keys are cached before turning (`LengthRotation`). A token's
  result then depends on nothing but the tokens before it: not on what else is in the batch, on how the prompt was
  chunked, nor on an earlier prompt. (The reference takes one length for a whole call and leaves old keys as they were.)
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
    key_positions: None = None  # not needed again


@dataclass(frozen=True)
class LengthRotation:
    """Frequencies by length: runs of queries that share theirs, each with the angles of its queries and of all keys."""

    runs: tuple[tuple[slice, Tensor], ...]  # columns of T, and their inv_freq (B, 1, E/2)
    positions: Tensor  # (B, T)
    key_positions: Tensor  # (B, S)
    scaling: float

    def __iter__(self) -> Iterator[tuple[slice, Angles, Angles]]:
        """Yields (columns, angles of the queries, angles of the keys); made on demand, since the keys' are large."""
        for columns, inv_freq in self.runs:
            yield (
                columns,
                angles(self.positions[:, columns], inv_freq, self.scaling),
                angles(self.key_positions, inv_freq, self.scaling),
            )


def angles(positions: Tensor, inv_freq: Tensor, scaling: float) -> Angles:
    """cos and sin of positions (B, tokens) x inv_freq (E/2) or (B, 1, E/2)."""
    phase = positions[:, :, None].float() * inv_freq  # (B, tokens, E/2)
    phase = phase[:, None]  # (B, 1, tokens, E/2)
    return phase.cos() * scaling, phase.sin() * scaling


def rotate(x: Tensor, by: Angles) -> Tensor:
    """Turns the pairs of x, (B, heads, tokens, E)."""
    cos, sin = by
    first, second = x.float().chunk(2, dim=-1)  # (B, heads, tokens, E/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class LlamaRotaryEmbedding(nn.Module):
    """Turns positions into what attention needs to rotate queries and keys."""

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
        """Follows the model to its device but keeps float32: `model.to(bfloat16)` must not round the frequencies."""
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor, cache: KVCache) -> Rotation | LengthRotation:
        """Positions (B, T) of the new tokens; the cache knows those of the cached ones."""
        if not self.by_length:
            return Rotation(angles(positions, self.inv_freq, self.scaling))
        keys = torch.cat((cache.token_positions(positions), positions), dim=1)
        return LengthRotation(tuple(self._runs(positions)), positions, keys, self.scaling)

    def _runs(self, positions: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Cuts the columns of positions (B, T) where any row's frequencies change."""
        lengths = positions + 1
        regime = lengths > self.original if self.kind == "longrope" else lengths.clamp(min=self.original)
        changes = (regime[:, 1:] != regime[:, :-1]).any(dim=0).nonzero().flatten() + 1
        edges = [0, *changes.tolist(), positions.shape[1]]
        for start, stop in pairwise(edges):
            yield slice(start, stop), self._for_length(lengths[:, start : start + 1, None])

    def _for_length(self, length: Tensor) -> Tensor:
        """inv_freq, (B, 1, E/2), for contexts of `length`, (B, 1, 1)."""
        if self.kind == "longrope":
            short, long = self.inv_freq
            return torch.where(length > self.original, long, short)
        # "NTK-aware" scaling that grows with the length (emozilla, 2023, after bloc97; also in YaRN, arXiv:2309.00071,
        # appendix B.2): the base becomes base * (factor * L / M - (factor - 1)) ^ (E / (E - 2)).
        width = 2 * self.inv_freq.shape[-1]
        excess = (length - self.original).clamp(min=0).float() / self.original
        stretch = (1 + self.settings["factor"] * excess) ** (width / max(width - 2, 1))
        return 1.0 / _powers(self.settings["rope_theta"] * stretch, width, self.inv_freq.device)


def _powers(theta: float | Tensor, width: int, device: torch.device | str = "cpu") -> Tensor:
    """theta^(2i/E), (..., E/2), in the reference's order of float32 operations: a rounding error grows with p.

    The device is named because models may be built under `torch.device("meta")`; frequencies are no weights and are
    always real.
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

    Wavelengths that fit the original context `high` times stay, those that do not fit `low` times are divided by the
    factor, those between are blended.
    """
    inv_freq = 1.0 / _powers(settings["rope_theta"], config.head_dim)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] / (2 * math.pi / inv_freq)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * inv_freq / settings["factor"] + keep * inv_freq, 1.0


def _yarn(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    """YaRN (arXiv:2309.00071), sections 3.2 (by parts) and 3.4 (temperature, here folded into cos and sin)."""
    theta, width, factor = settings["rope_theta"], config.head_dim, settings["factor"]
    original = settings["original_max_position_embeddings"]

    def pair_turning(times: float) -> float:
        """The (fractional) pair that turns `times` times within the original context."""
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_turning(settings.get("beta_fast", 32.0))
    high = pair_turning(settings.get("beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low or 0.001  # the reference's guard against a ramp of no width
    interpolated = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    powers = _powers(theta, width)
    inv_freq = 1.0 / (factor * powers) * interpolated + 1.0 / powers * (1 - interpolated)
    return inv_freq, _yarn_scaling(settings)


def _yarn_scaling(settings: dict[str, Any]) -> float:
    """sqrt(1/t) = 0.1 ln(factor) + 1 (YaRN, equation 22); mscale and mscale_all_dim are DeepSeek's additions."""
    given = settings.get("attention_factor")
    if given is not None:
        return float(given)

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0

    mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    return temperature(mscale) / temperature(mscale_all_dim) if mscale and mscale_all_dim else temperature(1.0)


def _longrope(settings: dict[str, Any], config: LlamaConfig) -> tuple[Tensor, float]:
    """LongRoPE (arXiv:2402.13753): a searched factor per pair, one set up to the original context, one beyond.

    Returns the frequencies as (2, E/2): short, long; or as (E/2) where both sets are the same, which is how GGUF files
    with divisors of their own are read. The configuration has filled in `attention_factor`.
    """
    factors = torch.tensor([settings["short_factor"], settings["long_factor"]], dtype=torch.float32, device="cpu")
    inv_freq = 1.0 / (factors * _powers(settings["rope_theta"], config.head_dim))
    return inv_freq[0] if torch.equal(*factors) else inv_freq, float(settings["attention_factor"])


_FREQUENCIES: dict[str, Callable[[dict[str, Any], LlamaConfig], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,  # up to the original context
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
"""(inv_freq (E/2), factor on cos and sin) of each rope type; longrope's inv_freq is (2, E/2) as a rule."""
