"""Rotary embeddings, compared with transformers; dynamic and longrope also with a reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Reference

from puna.config import LlamaConfig
from puna.model import KVCache, LlamaForCausalLM
from puna.model.rope import LlamaRotaryEmbedding, Rotation
from tests.helpers.configurations import DYNAMIC, LLAMA3, YARN, config_of, longrope
from tests.helpers.reference_models import distance, pair, transformers_config

SETTINGS: dict[str, Any] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": LLAMA3,
    "llama3.1": {**LLAMA3, "original_max_position_embeddings": 8192},
    "yarn": YARN,
    "yarn_options": {**YARN, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 0.9},
    "yarn_deepseek": {**YARN, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn_no_ramp": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("theta", "head_dim"), [(10000.0, 12), (500000.0, 64), (1e6, 128)])
def test_fixed_frequencies_equal_those_of_transformers(name: str, theta: float, head_dim: int) -> None:
    config = config_of(rope_scaling=SETTINGS[name], rope_theta=theta, head_dim=head_dim)
    rotary, reference = LlamaRotaryEmbedding(config), Reference(transformers_config(config))
    # The limit is two float32 roundings: puna interpolates the frequencies of llama3 in another order.
    assert ((rotary.inv_freq - reference.inv_freq) / reference.inv_freq).abs().max() < 1.3e-7
    positions = torch.tensor([[0, 1, 7, 500]])
    result = rotary(positions, KVCache())
    assert isinstance(result, Rotation)
    for angles, expected_angles in zip(result.angles, reference(torch.zeros(1), positions), strict=True):
        assert (angles[:, 0] - expected_angles[..., : head_dim // 2]).abs().max() < 1e-4


@pytest.mark.parametrize(
    "settings", [DYNAMIC, {"type": "dynamic", "factor": 1}, longrope(12, original=20, attention_factor=1.2)]
)
@pytest.mark.parametrize("length", [20, 21, 60])
def test_logits_of_the_last_position_equal_those_of_transformers(settings: dict[str, Any], length: int) -> None:
    """Beyond the original context, only the last position is compared.

    For such texts, transformers rotates every position with the frequencies of the total length.
    """
    model, reference = pair(config_of(rope_scaling=settings, num_hidden_layers=1, max_position_embeddings=20))
    ids = torch.randint(3, 67, (2, length))
    with torch.no_grad():
        result, expected = model(ids).logits, reference(ids).logits
    first = 0 if length == 20 else length - 1
    assert distance(result[:, first:], expected[:, first:]) <= 1e-5


def reference_logits(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Returns the logits (T, V) of ids (T,) in float64, computed for one query at a time."""
    c = model.config
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    x = w["model.embed_tokens.weight"][ids]

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * w[name]

    def rotate_heads(x: Tensor, position: int, length: int) -> Tensor:  # (heads, E)
        frequencies, scaling = _frequencies(c, length)
        half = c.head_dim // 2
        first, second = x[:, :half], x[:, half:]
        cos, sin = (position * frequencies).cos() * scaling, (position * frequencies).sin() * scaling
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=1)

    for n in range(c.num_hidden_layers):
        layer = f"model.layers.{n}."
        h = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            (h @ w[f"{layer}self_attn.{part}_proj.weight"].T).view(len(ids), -1, c.head_dim) for part in ("q", "k", "v")
        )
        group = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        rows = []
        for p in range(len(ids)):
            query = rotate_heads(q[p], p, p + 1)
            keys = torch.stack([rotate_heads(k[j], j, p + 1) for j in range(p + 1)])  # (S, H, E)
            weights = (torch.einsum("he,she->hs", query, keys) / math.sqrt(c.head_dim)).softmax(-1)
            rows.append(torch.einsum("hs,she->he", weights, v[: p + 1]).flatten())
        x = x + torch.stack(rows) @ w[layer + "self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm.weight")
        gate, up = (h @ w[f"{layer}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ w[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def _frequencies(c: LlamaConfig, length: int) -> tuple[Tensor, float]:
    """Returns the rotary frequencies for a text of `length` tokens, and the attention factor."""
    exponents = torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim
    settings = c.rope_parameters
    if settings["rope_type"] == "dynamic":
        longest, factor = c.max_position_embeddings, settings["factor"]
        stretch = factor * max(length, longest) / longest - (factor - 1)
        return (settings["rope_theta"] * stretch ** (c.head_dim / (c.head_dim - 2))) ** -exponents, 1.0
    beyond = length > settings["original_max_position_embeddings"]
    factors = torch.tensor(settings["long_factor" if beyond else "short_factor"], dtype=torch.float64)
    return settings["rope_theta"] ** -exponents / factors, settings["attention_factor"]


@pytest.mark.parametrize("settings", [DYNAMIC, longrope(12, original=12)])
def test_logits_with_frequencies_by_length_equal_float64_for_any_chunks_and_batch(settings: dict[str, Any]) -> None:
    config = config_of(rope_scaling=settings, max_position_embeddings=12, num_key_value_heads=2)
    model, _ = pair(config, seed=1)
    texts = [torch.randint(3, 67, (length,)) for length in (25, 9, 17)]
    expected = [reference_logits(model, text) for text in texts]
    ids = torch.stack([torch.nn.functional.pad(text, (25 - len(text), 0)) for text in texts])
    mask = torch.stack([(torch.arange(25) >= 25 - len(text)).long() for text in texts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = None
    chunks = []
    with torch.no_grad():
        fused = model(ids, attention_mask=mask, position_ids=positions).logits.double()
        eager = model(ids, attention_mask=mask, position_ids=positions, output_attentions=True).logits.double()
        for start, stop in ((0, 11), (11, 20), (20, 21), (21, 25)):
            step = model(ids[:, start:stop], mask[:, :stop], positions[:, start:stop], cache)
            cache = step.past_key_values
            chunks.append(step.logits.double())
    for logits in (fused, eager, torch.cat(chunks, dim=1)):
        for row, text_logits in zip(logits, expected, strict=True):
            assert distance(row[-len(text_logits) :], text_logits) <= 1e-5


@pytest.mark.parametrize("settings", [DYNAMIC, longrope(12, original=12)])
def test_positions_of_a_tuple_of_unrotated_keys_start_at_0(settings: dict[str, Any]) -> None:
    model, _ = pair(config_of(rope_scaling=settings, max_position_embeddings=12))
    ids = torch.randint(3, 67, (1, 20))
    with torch.no_grad():
        cache = model(ids[:, :15]).past_key_values
        result = model(ids[:, 15:], past_key_values=tuple(tuple(layer) for layer in cache)).logits
        assert distance(result, model(ids).logits[:, 15:]) <= 1e-5


def test_an_earlier_long_prompt_does_not_affect_logits() -> None:
    model, _ = pair(config_of(rope_scaling=DYNAMIC, max_position_embeddings=12))
    short, long = torch.randint(3, 67, (1, 8)), torch.randint(3, 67, (1, 40))
    with torch.no_grad():
        before = model(short).logits
        model(long)
        assert torch.equal(model(short).logits, before)


def test_gradients_beyond_the_original_context_equal_finite_differences() -> None:
    model, _ = pair(config_of(rope_scaling=DYNAMIC, max_position_embeddings=8), seed=2)
    ids = torch.randint(3, 67, (2, 12))
    model.train()
    model(ids, labels=ids).loss.backward()
    gradient = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    weight = model.model.layers[0].self_attn.k_proj.weight
    with torch.no_grad():
        weight[3, 5] += 1e-2
        up = model(ids, labels=ids).loss
        weight[3, 5] -= 2e-2
        down = model(ids, labels=ids).loss
    assert float((up - down) / 2e-2) == pytest.approx(float(gradient[3, 5]), rel=1e-2)


def test_frequencies_stay_float32_and_are_never_on_the_meta_device() -> None:
    config = config_of(rope_scaling=LLAMA3)
    exact = LlamaRotaryEmbedding(config).inv_freq
    model = LlamaForCausalLM(config).to(torch.bfloat16).half().double()
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, exact)
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    assert empty.lm_head.weight.is_meta
    assert torch.equal(empty.to_empty(device="cpu").model.rotary_emb.inv_freq, exact)
    assert not any("inv_freq" in name for name in model.state_dict())


def test_a_head_with_one_rotary_pair_has_frequency_1() -> None:
    """The only frequency is 1 for any base; transformers divides by zero here."""
    config = config_of(head_dim=2, rope_scaling=DYNAMIC, max_position_embeddings=4)
    runs = list(LlamaRotaryEmbedding(config)(torch.arange(9)[None], KVCache()))
    assert [queries for queries, _, _ in runs] == [slice(0, 4), *(slice(p, p + 1) for p in range(4, 9))]
    for queries, (cos, _), _ in runs:
        assert torch.equal(cos.flatten(), torch.arange(9.0)[queries].cos())
