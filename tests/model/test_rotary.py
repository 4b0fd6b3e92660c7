"""Rotary embeddings, compared with transformers; dynamic and longrope also with a reference in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Reference

from puna.model import KVCache, LlamaForCausalLM
from puna.model.rope import LlamaRotaryEmbedding, Rotation
from tests.helpers.configurations import DYNAMIC, LLAMA3, YARN, config_of, longrope
from tests.helpers.reference_float64 import reference_logits
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


BY_LENGTH = pytest.mark.parametrize("settings", [DYNAMIC, longrope(12, original=12)])


class Texts:
    """A model whose frequencies change after 12 tokens, texts, and the texts' logits in float64."""

    def __init__(self, settings: dict[str, Any], lengths: tuple[int, ...] = (25, 9, 17)) -> None:
        longest = 12 if settings["rope_type"] == "dynamic" else 48
        config = config_of(rope_scaling=settings, max_position_embeddings=longest, num_key_value_heads=2)
        self.model, _ = pair(config, seed=1)
        self.lengths = lengths
        state = {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}
        self.texts = [torch.randint(3, 67, (length,)) for length in lengths]
        self.expected = [torch.from_numpy(reference_logits(config, state, text.numpy())) for text in self.texts]

    def padded(self, side: str, more: int = 0) -> tuple[Tensor, Tensor]:
        """Returns the ids and the mask of a batch; the longest text has `more` tokens of padding, too."""
        width = max(self.lengths) + more
        paddings = [(width - n, 0) if side == "left" else (0, width - n) for n in self.lengths]
        ids = [pad(text, padding) for text, padding in zip(self.texts, paddings, strict=True)]
        mask = [pad(torch.ones(n).long(), padding) for n, padding in zip(self.lengths, paddings, strict=True)]
        return torch.stack(ids), torch.stack(mask)

    def check(self, logits: Tensor, mask: Tensor) -> None:
        """Compares the logits of all tokens that are not padding."""
        for row, keep, expected in zip(logits, mask.bool(), self.expected, strict=True):
            assert distance(row[keep].double(), expected) <= 1e-5


@BY_LENGTH
@pytest.mark.parametrize("positions", ["default", "with padding", "from the mask"])
@pytest.mark.parametrize(("side", "more"), [("left", 0), ("left", 7), ("right", 0), ("right", 7)])
@torch.no_grad()
def test_logits_equal_float64_for_any_padding_batch_and_chunks(
    settings: dict[str, Any], positions: str, side: str, more: int
) -> None:
    texts = Texts(settings)
    model = texts.model
    ids, mask = texts.padded(side, more)
    counted = {"with padding": torch.ones_like(mask), "from the mask": mask}.get(positions)
    position_ids = None if counted is None else (counted.cumsum(1) - 1).clamp(min=0)
    texts.check(model(ids, mask, position_ids).logits, mask)
    texts.check(model(ids, mask, position_ids, output_attentions=True).logits, mask)
    cache, chunks = None, []
    for start, stop in pairwise((0, 11, 20, 21, 25, ids.shape[1])):
        if start < stop:
            part = None if position_ids is None else position_ids[:, start:stop]
            out = model(ids[:, start:stop], mask[:, :stop], part, cache)
            cache = out.past_key_values
            chunks.append(out.logits)
    texts.check(torch.cat(chunks, dim=1), mask)


@BY_LENGTH
@torch.no_grad()
def test_a_float_or_bool_mask_of_padding_is_read_as_integers_are(settings: dict[str, Any]) -> None:
    texts = Texts(settings)
    ids, mask = texts.padded("left", 5)
    for dtype in (torch.bool, torch.float32):
        texts.check(texts.model(ids, mask.to(dtype)).logits, mask)


@BY_LENGTH
@pytest.mark.parametrize("path", ["native", "torch", "without cache"])
def test_generated_tokens_equal_float64_for_any_padding_and_batch(settings: dict[str, Any], path: str) -> None:
    texts = Texts(settings, (14, 3, 9, 13, 12))
    model = texts.model
    model.native_generation = path == "native"
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ids, mask = texts.padded("left", 3)
    options: dict[str, Any] = {
        "max_new_tokens": model.config.context_length - ids.shape[1],
        "eos_token_id": [],
        "pad_token_id": 0,
    }
    options["use_cache"] = path != "without cache"
    result = model.generate(ids, attention_mask=mask, **options)
    assert model.generation_path.startswith(path.partition(" ")[0].replace("without", "torch"))
    for row, text in zip(result, texts.texts, strict=True):
        answer = row[ids.shape[1] :]
        assert torch.equal(model.generate(text[None], **options)[0, len(text) :], answer)
        logits = reference_logits(model.config, state, torch.cat((text, answer)).numpy())[len(text) - 1 : -1]
        assert (logits.max(-1) - logits[range(len(answer)), answer] < 1e-4 * abs(logits).max()).all()


@BY_LENGTH
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
