"""The forward pass in NumPy float64, with activations and cached values rounded as in the native runtime.

The two passes are compared stage by stage. An independent pass would diverge: an activation close to the middle between
two 8-bit levels can be rounded to one level in float32 and to the other in float64, and the distance between levels is
1/128 of the largest activation. So each stage of the reference starts from the native runtime's own matrix inputs,
which `NativeBackend.observing` returns exactly. The rounded inputs then agree, and only the error of float32 sums
remains.

Legend: T tokens, D columns, H heads, K kv heads, E head width.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from puna.backend import Chunk, consecutive_pages
from puna.config import LlamaConfig
from puna.config.frequencies import RotaryFrequencies
from puna.native import NativeBackend
from tests.helpers.native import PackedTensor

SHARED_INPUTS = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]
"""Matrices of a layer that read the same rounded activations."""
PAGE, SPLIT, CACHE_BLOCK = 64, 256, 32
"""Tokens per cache page; tokens per attention split; elements of a q8_0 cache that share a scale."""


class Stage(NamedTuple):
    """One comparison: the results of the native runtime and of the reference for the same inputs."""

    name: str
    native: np.ndarray
    expected: np.ndarray


def round_to_8_bits(x: np.ndarray, group: int, kernels: str, full_range: bool) -> np.ndarray:
    """Rounds float32 (T, D) to integer multiples of a scale per `group` columns, ties to even; returns float64.

    With `full_range`, the value of largest magnitude becomes -128, the negative one if both signs occur; else 127.
    """
    columns = x.shape[1]
    padded = np.pad(x, ((0, 0), (0, -columns % group))).reshape(len(x), -1, group)
    largest = np.abs(padded).max(-1, keepdims=True)
    negative = (padded == -largest).any(-1, keepdims=True)
    steps = np.where(negative, np.float32(128), np.float32(-128)) if full_range else np.full_like(largest, 127)
    inverse = np.divide(steps, largest, out=np.zeros_like(largest), where=largest > 0)
    products = padded.astype(np.float64) * inverse  # exact: factors have 24 bits, float64 has 53
    if kernels == "portable" and platform.machine() not in ("aarch64", "arm64"):
        products = products.astype(np.float32)  # without fused multiply-add, products are rounded
    scale = (largest / steps).astype(np.float64)
    return (np.minimum(np.rint(products), 127) * scale).reshape(len(x), -1)[:, :columns]


def round_to_bf16(x: np.ndarray) -> np.ndarray:
    """Rounds finite float32 to the nearest bfloat16, ties to even; returns float64."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def observe(backend: NativeBackend, ids: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs the model on one id at a time.

    Returns the absolute values of the inputs of each matrix by its name, float32 (T, D), and the logits. The absolute
    values are the square roots of the observed squares; they are exact, because the square of a float32 is exact in
    float64.
    """
    rows: list[dict[str, np.ndarray]] = []
    logits = []
    pages = consecutive_pages(len(ids))
    for position, token in enumerate(ids):
        with backend.observing() as squares:
            logits.append(backend.forward([Chunk(pages, np.array([token]), position, 1)]).logits)
            rows.append({name: np.sqrt(sums).astype(np.float32) for name, sums in squares().items()})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, np.concatenate(logits)


class ReferenceForward:
    """The forward pass of a model whose keys are cached rotated (not dynamic or longrope).

    Args:
        kernels: build of the native kernels whose rounding is reproduced.
        cache: type of the cached keys and values.
    """

    def __init__(self, config: LlamaConfig, tensors: Mapping[str, PackedTensor], kernels: str, cache: str) -> None:
        self.config, self.tensors, self.kernels, self.cache = config, tensors, kernels, cache
        self.weights = {name: tensor.to_float32().astype(np.float64) for name, tensor in tensors.items()}
        self.multiplies_bf16 = kernels == "avx512_bf16"

    def stages(self, ids: np.ndarray, magnitudes: Mapping[str, np.ndarray], logits: np.ndarray) -> Iterator[Stage]:
        """Yields every stage of the pass over `ids`; the other arguments are the results of `observe`."""

        def stage(name: str, expected: np.ndarray) -> Stage:
            return Stage(name, np.copysign(magnitudes[name], expected).astype(np.float32), expected)

        hidden = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config.num_hidden_layers):
            at = f"model.layers.{layer}."
            norm = stage(f"{at}self_attn.q_proj.weight", self.rms_norm(f"{at}input_layernorm.weight", hidden))
            yield norm
            q, k, v = (self.matrix(f"{at}self_attn.{name}_proj", norm.native) for name in "qkv")
            attention = stage(f"{at}self_attn.o_proj.weight", self.attention(q, k, v))
            yield attention
            hidden = hidden + self.matrix(f"{at}self_attn.o_proj", attention.native)
            norm = stage(f"{at}mlp.gate_proj.weight", self.rms_norm(f"{at}post_attention_layernorm.weight", hidden))
            yield norm
            gate, up = (self.matrix(f"{at}mlp.{name}_proj", norm.native) for name in ("gate", "up"))
            product = stage(f"{at}mlp.down_proj.weight", gate / (1 + np.exp(-gate)) * up)
            yield product
            hidden = hidden + self.matrix(f"{at}mlp.down_proj", product.native)
        norm = stage("lm_head.weight", self.rms_norm("model.norm.weight", hidden))
        yield norm
        head = "lm_head" if "lm_head.weight" in self.weights else "model.embed_tokens"
        yield Stage("logits", logits, self.matrix(head, norm.native))

    def rms_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.rms_norm_eps) * self.weights[name]

    def matrix(self, name: str, x: np.ndarray) -> np.ndarray:
        """Multiplies x, (T, D), by a matrix; x is rounded as for the matrix's format."""
        block = self.tensors[f"{name}.weight"].format
        if block.values > 1:
            rounded = round_to_8_bits(x, self.scale_columns(name), self.kernels, full_range=True)
        elif block.name == "bf16" and self.multiplies_bf16:
            rounded = round_to_bf16(x)
        else:
            rounded = x.astype(np.float64)
        return rounded @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def scale_columns(self, name: str) -> int:
        """Returns the number of activations that share a scale: scale_blocks in csrc/kernels.h, times 32.

        The matrices that read the same activations determine it together: it is 64 if the scales of one of them are
        themselves quantised.
        """
        last = name.rpartition(".")[2]
        readers = next((names for names in SHARED_INPUTS if last in names), (last,))
        formats = [self.tensors[f"{name.removesuffix(last)}{reader}.weight"].format for reader in readers]
        two_levels = [block.values == 256 and block.name not in ("tq1_0", "tq2_0") for block in formats]
        return 64 if any(two_levels) else 32

    def attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Computes causal attention over the cache; (T, H E), (T, K E), (T, K E) -> (T, H E)."""
        width, tokens = self.config.head_dim, len(q)
        q = self.rotate(q.reshape(tokens, -1, width)) / np.sqrt(width)  # (T, H, E)
        k = self.cached(self.rotate(k.reshape(tokens, -1, width)))  # (T, K, E)
        v = self.cached(v.reshape(tokens, -1, width))
        uses_bf16 = self.cache == "bf16" and self.multiplies_bf16
        q = round_to_bf16(q) if uses_bf16 else q
        group = q.shape[1] // k.shape[1]
        scores = q.transpose(1, 0, 2) @ k.repeat(group, 1).transpose(1, 2, 0)  # (H, T, T)
        scores[:, ~np.tri(tokens, dtype=bool)] = -np.inf
        highest = scores.max(-1, keepdims=True)
        weights = np.exp(scores - highest)
        total = weights.sum(-1, keepdims=True)
        if uses_bf16:
            weights = _rounded_weights(scores, highest)
        values = weights / total @ v.repeat(group, 1).transpose(1, 0, 2)  # (H, T, E)
        return values.transpose(1, 0, 2).reshape(tokens, -1)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """Applies half-split rotary embedding to x, (T, heads, E); angles are float32 products, as in csrc."""
        rope = RotaryFrequencies(self.config)
        ((_, _, inv_freq),) = rope.runs(0, len(x))
        angle = (np.arange(len(x), dtype=np.float32)[:, None] * inv_freq).astype(np.float64)[:, None]  # (T, 1, E / 2)
        cos, sin = np.cos(angle) * rope.scale, np.sin(angle) * rope.scale
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def cached(self, x: np.ndarray) -> np.ndarray:
        """Returns keys or values rounded to the cache's type."""
        if self.cache == "f16":
            return x.astype(np.float32).astype(np.float16).astype(np.float64)
        if self.cache == "bf16":
            return round_to_bf16(x)
        if self.cache == "q8_0":
            rows = x.astype(np.float32).reshape(-1, self.config.head_dim)
            return round_to_8_bits(rows, CACHE_BLOCK, self.kernels, full_range=False).reshape(x.shape)
        return x


def _rounded_weights(scores: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Returns exp(scores - highest), (H, T, T), rounded to bfloat16 like the native runtime.

    The runtime reads a split page by page, and rounds a weight relative to the split's highest score so far.
    """
    weights = np.zeros_like(scores)
    for split in range(0, scores.shape[-1], SPLIT):
        so_far = np.full_like(highest, -3e38)
        for start in range(split, min(split + SPLIT, scores.shape[-1]), PAGE):
            page = scores[..., start : start + PAGE]
            so_far = np.maximum(so_far, page.max(-1, keepdims=True))
            rounded = round_to_bf16(np.exp(page - so_far))
            weights[..., start : start + PAGE] = rounded * np.exp(np.minimum(so_far - highest, 0))
    return weights
