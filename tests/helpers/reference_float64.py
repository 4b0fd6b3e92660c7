"""The forward pass of a model without biases in float64, for one text and one query at a time.

It shares no code with puna's implementations, and is the reference for the rope types whose frequencies depend on the
length of the text, dynamic and longrope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from puna.config import LlamaConfig

Array = np.ndarray


def reference_logits(config: LlamaConfig, state: Mapping[str, Array], ids: Array) -> Array:
    """Returns the logits, (T, V), of ids, (T,); `state` has the weights by Hugging Face's names."""
    weights = {name: tensor.astype(np.float64) for name, tensor in state.items()}
    x = weights["model.embed_tokens.weight"][ids]
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}."
        h = _norm(x, weights[layer + "input_layernorm.weight"], config)
        q, k, v = (
            (h @ weights[f"{layer}self_attn.{part}_proj.weight"].T).reshape(len(ids), -1, config.head_dim)
            for part in ("q", "k", "v")
        )
        group = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat(group, 1), v.repeat(group, 1)
        rows = [_attend(config, q[p], k[: p + 1], v[: p + 1]) for p in range(len(ids))]
        x = x + np.stack(rows) @ weights[layer + "self_attn.o_proj.weight"].T
        h = _norm(x, weights[layer + "post_attention_layernorm.weight"], config)
        gate, up = (h @ weights[f"{layer}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[layer + "mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    logits: Array = _norm(x, weights["model.norm.weight"], config) @ head.T
    return logits


def log_softmax(logits: Array) -> Array:
    """Returns the log-probabilities of logits, (..., V)."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _norm(x: Array, weight: Array, config: LlamaConfig) -> Array:
    result: Array = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight
    return result


def _attend(config: LlamaConfig, query: Array, keys: Array, values: Array) -> Array:
    """Returns the output of the last position, (H * E,), for its query, (H, E), and all keys and values, (S, H, E)."""
    length = len(keys)
    keys = _rotate(config, keys, np.arange(length), length)
    query = _rotate(config, query[None], np.array([length - 1]), length)[0]
    scores = np.einsum("he,she->hs", query, keys) / math.sqrt(config.head_dim)
    return np.einsum("hs,she->he", np.exp(log_softmax(scores)), values).reshape(-1)


def _rotate(config: LlamaConfig, x: Array, positions: Array, length: int) -> Array:
    """Returns x, (S, H, E), rotated for these positions, (S,), in a text of `length` tokens."""
    frequencies, scaling = _frequencies(config, length)
    angles = positions[:, None, None] * frequencies
    cos, sin = np.cos(angles) * scaling, np.sin(angles) * scaling
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _frequencies(config: LlamaConfig, length: int) -> tuple[Array, float]:
    """Returns the rotary frequencies for a text of `length` tokens, and the factor on cosines and sines."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    settings = config.rope_parameters
    if settings["rope_type"] == "dynamic":
        longest, factor = config.max_position_embeddings, settings["factor"]
        stretch = factor * max(length, longest) / longest - (factor - 1)
        return (settings["rope_theta"] * stretch ** (config.head_dim / (config.head_dim - 2))) ** -exponents, 1.0
    beyond = length > settings["original_max_position_embeddings"]
    factors = np.array(settings["long_factor" if beyond else "short_factor"])
    return settings["rope_theta"] ** -exponents / factors, settings["attention_factor"]
