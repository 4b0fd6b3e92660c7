"""`KVCache` is immutable and is the tuple of tuples that Hugging Face's documentation describes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from puna.errors import PunaError
from puna.model import KVCache, LlamaForCausalLM
from puna.model.rope import angles, rotate
from tests.helpers.configurations import DYNAMIC, config_of, longrope
from tests.helpers.reference_models import distance, pair


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    causal_lm: LlamaForCausalLM = pair(config_of(num_key_value_heads=2))[0]
    return causal_lm


@torch.no_grad()
def test_a_cache_is_a_tuple_of_tuples(model: LlamaForCausalLM) -> None:
    cache = model(torch.randint(3, 67, (3, 7)), use_cache=True).past_key_values
    assert isinstance(cache, tuple)
    assert len(cache) == 2
    assert [key.shape for key, _ in cache] == [(3, 2, 7, 12)] * 2
    keys, values = cache[-1]
    assert keys is cache[1][0]
    assert values is cache[1][1]
    assert cache.length == cache.get_seq_length() == 7


def unrotated_keys(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Returns the first layer's unrotated keys, (1, kv heads, tokens, head_dim)."""
    layer = model.model.layers[0]
    keys = layer.self_attn.k_proj(layer.input_layernorm(model.model.embed_tokens(ids)))
    return keys.view(1, ids.shape[1], -1, 12).transpose(1, 2)


@torch.no_grad()
def test_cached_keys_are_rotated(model: LlamaForCausalLM) -> None:
    ids = torch.randint(3, 67, (1, 7))
    rotated = rotate(unrotated_keys(model, ids), angles(torch.arange(7)[None], model.model.rotary_emb.inv_freq, 1.0))
    assert distance(model(ids).past_key_values[0][0], rotated) <= 1e-6


@pytest.mark.parametrize("settings", [DYNAMIC, longrope(12)])
@torch.no_grad()
def test_cached_keys_of_dynamic_and_longrope_are_unrotated_and_have_positions(settings: dict[str, Any]) -> None:
    model, _ = pair(config_of(rope_scaling=settings))
    ids = torch.randint(3, 67, (1, 7))
    cache = model(ids, position_ids=torch.arange(2, 9)[None]).past_key_values
    assert cache.positions.tolist() == [[2, 3, 4, 5, 6, 7, 8]]
    assert distance(cache[0][0], unrotated_keys(model, ids)) <= 1e-6


@torch.no_grad()
def test_one_prefix_can_be_continued_several_times(model: LlamaForCausalLM) -> None:
    prefix, first, second = (torch.randint(3, 67, (1, n)) for n in (6, 3, 4))
    cache = model(prefix).past_key_values
    copies = copy.deepcopy(cache)
    results = [model(ids, past_key_values=cache).logits for ids in (first, second, first)]
    assert torch.equal(results[0], results[2])
    for ids, logits in zip((first, second), results, strict=False):
        assert distance(logits, model(torch.cat((prefix, ids), dim=1)).logits[:, 6:]) <= 1e-5
    for layer, unchanged in zip(cache, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, unchanged, strict=True))


@pytest.mark.parametrize("legacy", ["tuples", "lists", "empty"])
@torch.no_grad()
def test_tuples_lists_and_empty_caches_are_accepted(model: LlamaForCausalLM, legacy: str) -> None:
    ids = torch.randint(3, 67, (2, 8))
    cache = model(ids[:, :5]).past_key_values
    forms: dict[str, Any] = {"tuples": tuple(cache), "lists": [list(layer) for layer in cache], "empty": ()}
    start = 0 if legacy == "empty" else 5
    logits = model(ids[:, start:], past_key_values=forms[legacy]).logits
    assert distance(logits, model(ids).logits[:, start:]) <= 1e-5


@torch.no_grad()
def test_caches_can_be_reordered_cropped_and_pickled() -> None:
    model, _ = pair(config_of(rope_scaling=DYNAMIC, max_position_embeddings=4))
    ids = torch.randint(3, 67, (3, 8))
    cache = model(ids[:, :6]).past_key_values
    rows = torch.tensor([2, 0, 0])
    logits = model(ids[rows, 6:], past_key_values=model._reorder_cache(cache, rows)).logits
    assert distance(logits, model(ids[rows]).logits[:, 6:]) <= 1e-5
    logits = model(ids[:, 4:], past_key_values=cache.crop(4)).logits
    assert distance(logits, model(ids).logits[:, 4:]) <= 1e-5
    unpickled = pickle.loads(pickle.dumps(cache))
    assert isinstance(unpickled, KVCache)
    assert torch.equal(unpickled.positions, cache.positions)
    assert torch.equal(unpickled[1][0], cache[1][0])
    plain = model._reorder_cache(tuple(cache), rows)
    assert torch.equal(plain[0][1], cache[0][1][rows])


def test_gradients_flow_through_a_cache(model: LlamaForCausalLM) -> None:
    prefix = KVCache([(torch.randn(1, 2, 3, 12, requires_grad=True), torch.randn(1, 2, 3, 12)) for _ in range(2)])
    model(torch.randint(3, 67, (1, 4)), past_key_values=prefix).logits.sum().backward()
    assert prefix[0][0].grad.abs().max() > 0
    model.zero_grad()


@pytest.mark.parametrize("shape", [(2, 4, 3, 12), (2, 2, 3, 10), (1, 2, 3, 12)])
def test_a_cache_of_another_model_or_batch_is_an_error(model: LlamaForCausalLM, shape: tuple[int, ...]) -> None:
    past = [(torch.zeros(shape), torch.zeros(shape))] * 2
    with pytest.raises(PunaError, match=r"\(2, 2, 3, 12\)"):
        model(torch.randint(3, 67, (2, 4)), past_key_values=past)
    with pytest.raises(PunaError, match=r"1 layers.*2 layers"):
        model(torch.randint(3, 67, (2, 4)), past_key_values=[(torch.zeros(2, 2, 3, 12),) * 2])
    with pytest.raises(PunaError, match="past_key_values is a int"):
        model(torch.randint(3, 67, (2, 4)), past_key_values=3)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_a_cache_of_transformers_is_changed_in_place_and_returned(kind: str) -> None:
    model, reference = pair(config_of(num_key_value_heads=2))
    ids = torch.randint(3, 67, (2, 8))
    ours, theirs = (
        DynamicCache() if kind == "dynamic" else StaticCache(config=reference.config, max_cache_len=20)
        for _ in range(2)
    )
    for part in (ids[:, :5], ids[:, 5:7], ids[:, 7:]):
        out = model(part, past_key_values=ours)
        expected = reference(part, past_key_values=theirs)
        assert out.past_key_values is ours
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert distance(out.logits, expected.logits) <= 1e-5
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        assert distance(one.keys, other.keys) <= 1e-5
        assert distance(one.values, other.values) <= 1e-5


@torch.no_grad()
def test_generate_continues_a_cache_of_transformers() -> None:
    """A chat whose cache the caller keeps, as in the documentation of transformers."""
    model, reference = pair(config_of(num_key_value_heads=2, max_position_embeddings=64))
    histories = [torch.randint(3, 67, (1, 4), generator=torch.Generator().manual_seed(1))] * 2
    caches = [DynamicCache(), DynamicCache()]
    for _ in range(3):
        for index, each in enumerate((model, reference)):
            options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
            out = each.generate(histories[index], past_key_values=caches[index], **options)
            histories[index] = torch.cat((out, torch.tensor([[7, 8]])), dim=1)
        assert torch.equal(histories[0], histories[1])
        assert caches[0].get_seq_length() == caches[1].get_seq_length()


@pytest.mark.parametrize(
    ("argument", "default", "expected"), [(None, True, True), (None, False, False), (False, True, False)]
)
def test_use_cache_decides_whether_a_cache_is_returned(argument: bool | None, default: bool, expected: bool) -> None:
    model, _ = pair(config_of(use_cache=default))
    assert (model(torch.tensor([[3, 4]]), use_cache=argument).past_key_values is not None) == expected
