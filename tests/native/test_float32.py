"""With `float32=True`, no value is rounded to fewer bits than float32, whatever the format of the weights."""

from __future__ import annotations

import numpy as np
import pytest

from puna.errors import BackendError
from puna.native import NativeBackend
from puna.native.library import float32_kernels, machine
from tests.helpers.configurations import config_of
from tests.helpers.native import PackedTensor, pack_state, relative_rms, run
from tests.helpers.random_weights import random_state

CONFIG = config_of(
    hidden_size=256, intermediate_size=256, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.05
)
IDS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 300)


def forward_float64(tensors: dict[str, PackedTensor]) -> np.ndarray:
    """Returns the logits of every position, computed in float64 by a plain forward pass with the default rope type."""
    w = {name: tensor.to_float32().astype(np.float64) for name, tensor in tensors.items()}
    width, heads, group = CONFIG.head_dim, CONFIG.num_attention_heads, 2
    inv_freq = np.float32(CONFIG.rope_theta ** (-np.arange(0, width, 2) / width))
    angles = np.outer(np.arange(len(IDS), dtype=np.float32), inv_freq).astype(np.float64)  # float32, as in PyTorch
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.rms_norm_eps) * w[name]

    def rotate(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x.reshape(len(IDS), -1, width), 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    hidden = w["model.embed_tokens.weight"][IDS]
    for layer in range(CONFIG.num_hidden_layers):
        at = f"model.layers.{layer}."
        x = norm(f"{at}input_layernorm.weight", hidden)
        q, k = (rotate(x @ w[f"{at}self_attn.{name}_proj.weight"].T) for name in "qk")
        v = (x @ w[f"{at}self_attn.v_proj.weight"].T).reshape(len(IDS), -1, width)
        k, v = (np.repeat(part, group, axis=1) for part in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(width)
        scores[:, np.triu(np.ones((len(IDS), len(IDS)), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v).reshape(len(IDS), heads * width)
        hidden = hidden + mixed @ w[f"{at}self_attn.o_proj.weight"].T
        x = norm(f"{at}post_attention_layernorm.weight", hidden)
        gate, up = (x @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}mlp.down_proj.weight"].T
    return norm("model.norm.weight", hidden) @ w["lm_head.weight"].T


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_K"])
def test_float32_agrees_with_float64(name, kernels):
    tensors = pack_state(name, random_state(CONFIG))
    expected = forward_float64(tensors)
    backend = NativeBackend(CONFIG, tensors, 2, float32=True)
    assert relative_rms(run(backend, IDS, [300]), expected) < 1e-5
    assert relative_rms(run(backend, IDS, [280, *[1] * 20]), expected) < 1e-5
    if name != "f32":  # the caches, and some activations, are rounded by default
        rounded = relative_rms(run(NativeBackend(CONFIG, tensors, 2), IDS, [300]), expected)
        assert rounded > 1e-4


def test_float32_never_uses_bf16_products(monkeypatch):
    for name in machine().kernels:
        monkeypatch.setenv("PUNA_KERNELS", name)
        assert float32_kernels() == name.removesuffix("_bf16")


def test_float32_contradicts_quantising():
    with pytest.raises(BackendError, match=r"quantize is 'q8_0', but float32 is requested"):
        NativeBackend(CONFIG, pack_state("f32", random_state(CONFIG)), quantize="q8_0", float32=True)
