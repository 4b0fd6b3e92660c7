"""Translates the rotary settings of a GGUF file into Hugging Face's `rope_scaling`.

A GGUF file stores the scaling of positions in one of three ways: keys under `llama.rope.scaling`, a tensor
`rope_freqs.weight` with one divisor per frequency (Llama 3.1's scaling, computed by the converter), or two tensors
`rope_factors_short.weight` and `rope_factors_long.weight` (LongRoPE). Any other setting is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.checkpoint.gguf_keys import GgufKeys
from puna.errors import CheckpointError, show
from puna.formats.blocks import StoredTensor

FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

_PREFIX = "llama.rope."
_SUPPORTED = {
    "freq_base", "dimension_count", "scale_linear", "scaling.type", "scaling.factor", "scaling.attn_factor",
    "scaling.original_context_length", "scaling.finetuned", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow",
    "scaling.yarn_ext_factor", "scaling.yarn_attn_factor", "scaling.yarn_log_multiplier",
}  # fmt: skip

_LOW, _HIGH, _CONTEXT = 1.0, 4.0, 8192
"""`low_freq_factor`, `high_freq_factor` and original context of all of Llama 3.1 to 3.3; only `factor` differs."""

_TOLERANCE = 1e-5
"""Maximum relative difference between a file's divisors and those computed from a factor. Converters compute in
float32, whose rounding errors the formula magnifies to 2e-6 at factor 32; other formulas differ by several percent."""


def rope_scaling(
    keys: GgufKeys, tensors: Mapping[str, StoredTensor], theta: float, head_dim: int
) -> dict[str, Any] | None:
    """Returns the `rope_scaling` of `LlamaConfig`.

    Raises:
        CheckpointError: an unknown scaling or key, or two scalings at once.
    """
    unknown = [key for key in keys.metadata if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _SUPPORTED]
    if unknown:
        raise CheckpointError(
            f"unknown rotary settings {', '.join(unknown)[:200]}; puna reads {', '.join(sorted(_SUPPORTED))}"
        )
    kind = keys.text(f"{_PREFIX}scaling.type", "linear")  # llama.cpp's default if the key is missing
    _refuse_yarn(keys, kind)
    key_scaling = _from_keys(keys, kind)
    factors = {name: _factors(tensors[name], head_dim) for name in FACTOR_TENSORS if name in tensors}
    if not factors:
        if kind == "longrope":
            raise CheckpointError(
                "rope scaling is 'longrope', but rope_factors_long.weight and rope_factors_short.weight are missing"
            )
        if kind != "yarn":
            _refuse_attention_factor(keys, kind)
        return key_scaling
    if key_scaling is not None:
        raise CheckpointError(
            f"the file has both {_PREFIX}scaling keys ({kind}) and {', '.join(factors)}; it may have only one of them"
        )
    if "rope_freqs.weight" in factors:
        if len(factors) > 1:
            raise CheckpointError(f"{', '.join(factors)}: rope_freqs.weight and LongRoPE's tensors exclude each other")
        return _from_divisors(keys, factors["rope_freqs.weight"], theta)
    return _longrope(keys, factors)


def _from_keys(keys: GgufKeys, kind: str) -> dict[str, Any] | None:
    """Returns the scaling that the keys specify, read as in llama.cpp's `llama_model::load_hparams`."""
    factor = keys.number(f"{_PREFIX}scaling.factor", keys.number(f"{_PREFIX}scale_linear", 1.0))
    factor = factor or 1.0  # llama.cpp reads 0 as 1
    if kind == "none" or (kind in ("linear", "longrope") and factor == 1):
        return None
    if kind == "yarn" and factor == keys.number(f"{_PREFIX}scaling.attn_factor", 1.0) == 1:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(keys, factor)
    if kind == "longrope":
        raise CheckpointError(f"longrope scaling with an additional factor {factor}; LlamaConfig cannot express that")
    raise CheckpointError(f"{_PREFIX}scaling.type is {show(kind)}; puna reads 'none', 'linear', 'yarn' and 'longrope'")


def _refuse_attention_factor(keys: GgufKeys, kind: str) -> None:
    """Raises CheckpointError for an attention factor, by which ggml multiplies cosines and sines with any scaling."""
    factor = keys.number(f"{_PREFIX}scaling.attn_factor", 1.0)
    if factor != 1:
        raise CheckpointError(
            f"{_PREFIX}scaling.attn_factor is {factor} with scaling of type {kind!r}; LlamaConfig cannot express that"
        )


def _refuse_yarn(keys: GgufKeys, kind: str) -> None:
    """Refuses YaRN keys that `LlamaConfig` cannot express; ggml applies ext_factor with any type of scaling."""
    for key, neutral in (("ext_factor", float(kind == "yarn")), ("attn_factor", 1.0), ("log_multiplier", 0.0)):
        value = keys.number(f"{_PREFIX}scaling.yarn_{key}", neutral)
        if value != neutral:
            raise CheckpointError(
                f"{_PREFIX}scaling.yarn_{key} is {value}; LlamaConfig can express only {neutral} with scaling of type "
                f"{show(kind)}"
            )


def _yarn(keys: GgufKeys, factor: float) -> dict[str, Any]:
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.count(f"{_PREFIX}scaling.original_context_length"),
    }
    for beta in ("beta_fast", "beta_slow"):
        if f"{_PREFIX}scaling.yarn_{beta}" in keys.metadata:
            scaling[beta] = keys.number(f"{_PREFIX}scaling.yarn_{beta}")
    attention = keys.number(f"{_PREFIX}scaling.attn_factor", 1.0)
    if attention != 1:
        # ggml multiplies 1 + 0.1 ln(factor) by its attn_factor (`rope_yarn` in ggml-cpu); Hugging Face's
        # attention_factor replaces that product.
        scaling["attention_factor"] = attention * (1 + 0.1 * math.log(factor))
    return scaling


def _factors(tensor: StoredTensor, head_dim: int) -> NDArray[np.float32]:
    if tensor.shape != (head_dim // 2,):
        raise CheckpointError(f"tensor {tensor.name!r} has the shape {tensor.shape}; expected ({head_dim // 2},)")
    values = tensor.to_float32()
    if not np.all((values > 0) & np.isfinite(values)):
        raise CheckpointError(f"tensor {tensor.name!r} contains values that are not positive and finite")
    return values


def _from_divisors(keys: GgufKeys, divisors: NDArray[np.float32], theta: float) -> dict[str, Any] | None:
    attention = keys.number(f"{_PREFIX}scaling.attn_factor", 1.0)
    if attention == 1 and np.all(divisors == 1):
        return None
    original = keys.count(f"{_PREFIX}scaling.original_context_length", _CONTEXT)
    factor = _llama3_factor(divisors, theta, original)
    if attention == 1 and factor is not None:
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": original,
        }
    # The divisors follow another formula. LongRoPE divides each frequency too, with a list of divisors for short texts
    # and another for long texts, and has an attention factor: with the same list twice, it expresses the file exactly.
    factors = _floats(divisors)
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": original,
        "factor": 1.0,
        "attention_factor": attention,
    }


def _llama3_factor(divisors: NDArray[np.float32], theta: float, original: int) -> float | None:
    """Returns the `factor` with which Llama 3.1's formula results in `divisors`; None if no factor does."""
    pairs = len(divisors)
    wavelength = 2 * math.pi * theta ** (np.arange(pairs) / pairs)
    smooth = np.clip((original / wavelength - _LOW) / (_HIGH - _LOW), 0, 1)  # 1: unchanged, 0: divided by the factor
    index = int(np.argmin(smooth))
    if smooth[index] >= 1:
        return None
    # Solves 1 / divisor = (1 - smooth) / factor + smooth for the factor, at the frequency with the smallest smooth.
    inverse = (1 / float(divisors[index]) - float(smooth[index])) / (1 - float(smooth[index]))
    if not 0 < inverse < 0.999999:
        return None
    factor = float(f"{1 / inverse:.6g}")  # float32 preserves about six digits
    expected = 1 / ((1 - smooth) / factor + smooth)
    return factor if np.allclose(expected, divisors, rtol=_TOLERANCE, atol=0) else None


def _longrope(keys: GgufKeys, factors: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    if len(factors) != 2:
        raise CheckpointError(f"LongRoPE needs rope_factors_long and _short; the file has only {', '.join(factors)}")
    original = keys.count(f"{_PREFIX}scaling.original_context_length")
    return {
        "rope_type": "longrope",
        "short_factor": _floats(factors["rope_factors_short.weight"]),
        "long_factor": _floats(factors["rope_factors_long.weight"]),
        "original_max_position_embeddings": original,
        # ggml applies the file's attention factor, by default 1, without deriving one from the context lengths.
        "attention_factor": keys.number(f"{_PREFIX}scaling.attn_factor", 1.0),
    }


def _floats(values: Sequence[np.float32] | NDArray[np.float32]) -> list[float]:
    return [float(value) for value in values]
