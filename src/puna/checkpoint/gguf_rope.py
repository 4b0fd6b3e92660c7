"""Rotary settings of a GGUF file, in Hugging Face's terms.

GGUF says how positions are scaled in up to three places: `llama.rope.scaling.*` keys, a tensor `rope_freqs.weight` of
one divisor per frequency (Llama 3.1's scaling, worked out by the converter), or two tensors `rope_factors_short.weight`
and `rope_factors_long.weight` (LongRoPE). Anything these do not explain is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.gguf_keys import GgufKeys
from puna.errors import CheckpointError
from puna.formats.blocks import StoredTensor

FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_PREFIX = "llama.rope."
_READ = {
    "freq_base", "dimension_count", "scale_linear", "scaling.type", "scaling.factor", "scaling.attn_factor",
    "scaling.original_context_length", "scaling.finetuned", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow",
    "scaling.yarn_ext_factor", "scaling.yarn_attn_factor", "scaling.yarn_log_multiplier",
}  # fmt: skip

_LOW, _HIGH, _OLD = 1.0, 4.0, 8192
"""Llama 3.1, 3.2 and 3.3 differ in `factor` alone (llama-models, `apply_scaling`)."""

_CLOSE = 1e-5
"""Largest relative difference between a file's divisors and a recipe's. Converters work in float32, whose rounding the
recipe's subtractions magnify to 2e-6 at factor 32; two different recipes are percents apart."""


def rope_scaling(
    keys: GgufKeys, tensors: Mapping[str, StoredTensor], theta: float, head_dim: int
) -> dict[str, Any] | None:
    """The `rope_scaling` of `LlamaConfig`.

    Raises:
        CheckpointError: an unknown scaling or key, or two that would apply at once.
    """
    unknown = [key for key in keys.metadata if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _READ]
    if unknown:
        raise CheckpointError(
            f"unknown rotary settings {', '.join(unknown)[:200]}; puna reads {', '.join(sorted(_READ))}"
        )
    kind = keys.text(f"{_PREFIX}scaling.type", "linear")  # llama.cpp's default: files older than this key are linear
    _refuse_yarn(keys, kind)
    scaled = _from_keys(keys, kind)
    factors = {name: _factors(tensors[name], head_dim) for name in FACTOR_TENSORS if name in tensors}
    if not factors:
        if kind == "longrope":
            raise CheckpointError(
                "rope scaling is 'longrope', but rope_factors_long.weight and _short.weight are missing"
            )
        if kind != "yarn":
            _refuse_attention_factor(keys, kind)
        return scaled
    if scaled is not None:
        raise CheckpointError(
            f"both {_PREFIX}scaling keys ({kind}) and {', '.join(factors)}; only one may scale positions"
        )
    if "rope_freqs.weight" in factors:
        if len(factors) > 1:
            raise CheckpointError(f"{', '.join(factors)} together; only rope_freqs or the other two may be there")
        return _from_divisors(keys, factors["rope_freqs.weight"], theta)
    return _longrope(keys, factors)


def _from_keys(keys: GgufKeys, kind: str) -> dict[str, Any] | None:
    """Scaling by a factor alone, as llama.cpp's `llama_model::load_hparams` reads it; "none" overrides the factor."""
    factor = keys.number(f"{_PREFIX}scaling.factor", keys.number(f"{_PREFIX}scale_linear", 1.0))
    if kind == "none" or (kind in ("linear", "longrope") and factor == 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(keys, factor)
    if kind == "longrope":
        raise CheckpointError(f"longrope scaling with a factor, {factor}, beside; LlamaConfig cannot express that")
    raise CheckpointError(f"{_PREFIX}scaling.type is {kind[:40]!r}; puna reads none, linear, yarn and longrope")


def _refuse_attention_factor(keys: GgufKeys, kind: str) -> None:
    """ggml multiplies cosines and sines by it whatever the kind of scaling."""
    factor = keys.number(f"{_PREFIX}scaling.attn_factor", 1.0)
    if factor != 1:
        raise CheckpointError(
            f"{_PREFIX}scaling.attn_factor is {factor} with scaling of type {kind!r}; LlamaConfig cannot express that"
        )


def _refuse_yarn(keys: GgufKeys, kind: str) -> None:
    """Refuses what `LlamaConfig` has no field for. ggml mixes frequencies as YaRN does wherever ext_factor is not 0."""
    for key, neutral in (("ext_factor", float(kind == "yarn")), ("attn_factor", 1.0), ("log_multiplier", 0.0)):
        found = keys.number(f"{_PREFIX}scaling.yarn_{key}", neutral)
        if found != neutral:
            raise CheckpointError(
                f"{_PREFIX}scaling.yarn_{key} is {found}; LlamaConfig cannot express another value than {neutral} with "
                f"scaling of type {kind[:40]!r}"
            )


def _yarn(keys: GgufKeys, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.whole(f"{_PREFIX}scaling.original_context_length"),
    }
    for beta in ("beta_fast", "beta_slow"):
        if f"{_PREFIX}scaling.yarn_{beta}" in keys.metadata:
            found[beta] = keys.number(f"{_PREFIX}scaling.yarn_{beta}")
    attention = keys.number(f"{_PREFIX}scaling.attn_factor", 1.0)
    if attention != 1:
        # ggml multiplies its own 1 + 0.1 ln(factor) (`rope_yarn` in ggml-cpu) by this; Hugging Face's replaces it.
        found["attention_factor"] = attention * (1 + 0.1 * math.log(factor))
    return found


def _factors(tensor: StoredTensor, head_dim: int) -> NDArray[np.float32]:
    if tensor.shape != (head_dim // 2,):
        raise CheckpointError(f"tensor {tensor.name!r} has the shape {tensor.shape}; ({head_dim // 2},) is needed")
    values = tensor.to_float32()
    if not np.all((values > 0) & np.isfinite(values)):
        raise CheckpointError(f"tensor {tensor.name!r} holds values that are not positive and finite")
    return values


def _from_divisors(keys: GgufKeys, divisors: NDArray[np.float32], theta: float) -> dict[str, Any] | None:
    attention = keys.number(f"{_PREFIX}scaling.attn_factor", 1.0)
    if attention == 1 and np.all(divisors == 1):
        return None
    old = keys.whole(f"{_PREFIX}scaling.original_context_length", _OLD)
    factor = _llama3_factor(divisors, theta, old)
    if attention == 1 and factor is not None:
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": old,
        }
    # Some other recipe. LongRoPE divides each frequency by a number too, one list for short texts and one for long, and
    # has an attention factor; given the same list twice, it is exactly what the file asks for.
    found = _listed(divisors)
    return {
        "rope_type": "longrope",
        "short_factor": found,
        "long_factor": found,
        "original_max_position_embeddings": old,
        "factor": 1.0,
        "attention_factor": attention,
    }


def _llama3_factor(divisors: NDArray[np.float32], theta: float, old: int) -> float | None:
    """The `factor` with which Llama 3.1's recipe gives `divisors`; None if none does."""
    pairs = len(divisors)
    wavelength = 2 * math.pi * theta ** (np.arange(pairs) / pairs)
    smooth = np.clip((old / wavelength - _LOW) / (_HIGH - _LOW), 0, 1)  # 1: kept, 0: divided by the factor
    at = int(np.argmin(smooth))
    if smooth[at] >= 1:
        return None
    # The recipe, 1 / divisor = (1 - smooth) / factor + smooth, solved for the factor where smooth is least.
    inverse = (1 / float(divisors[at]) - float(smooth[at])) / (1 - float(smooth[at]))
    if not 0 < inverse < 0.999999:
        return None
    factor = float(f"{1 / inverse:.6g}")  # the digits that survive float32
    recipe = 1 / ((1 - smooth) / factor + smooth)
    return factor if np.allclose(recipe, divisors, rtol=_CLOSE, atol=0) else None


def _longrope(keys: GgufKeys, factors: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    if len(factors) != 2:
        raise CheckpointError(f"only {', '.join(factors)}; LongRoPE needs rope_factors_long.weight and _short.weight")
    original = keys.whole(f"{_PREFIX}scaling.original_context_length")
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": _listed(factors["rope_factors_short.weight"]),
        "long_factor": _listed(factors["rope_factors_long.weight"]),
        "original_max_position_embeddings": original,
        # ggml applies the attention factor as it stands, 1 where the file has none.
        "attention_factor": keys.number(f"{_PREFIX}scaling.attn_factor", 1.0),
    }
    return found


def _listed(values: Sequence[np.float32] | NDArray[np.float32]) -> list[float]:
    return [float(value) for value in values]
