"""Embeddings as inputs, hidden states as outputs, and access to the pages of the native backend's cache."""

from __future__ import annotations

import numpy as np
import pytest

from puna.backend import Chunk, consecutive_pages
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.native import NativeBackend
from tests.helpers.configurations import config_of
from tests.helpers.native import pack, pack_state, relative_rms, run
from tests.helpers.random_weights import random_state
from tests.native.shapes import SHAPES

CACHES = ("f32", "f16", "bf16", "q8_0")


def native_backend(config: LlamaConfig, cache: str | None = None, slots: int = 1) -> NativeBackend:
    return NativeBackend(config, pack_state("f32", random_state(config)), 2, slots, cache=cache)


@pytest.mark.parametrize("name", ["all_biases_tied", "dynamic_mqa"])
def test_embeddings_of_the_model_give_the_bits_of_its_tokens(name, kernels):
    config = config_of(**SHAPES[name])
    backend = native_backend(config, slots=2)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 40)
    table = random_state(config)["model.embed_tokens.weight"].astype(np.float32)
    expected = run(backend, ids, [40])
    zeros = np.zeros_like(ids)
    logits = [
        backend.forward([Chunk((0,), zeros[:30], 0, 30, embeddings=table[ids[:30]])]).logits,
        backend.forward([Chunk((0,), ids[30:], 30, 10)]).logits,
    ]
    assert (np.concatenate(logits) == expected).all()


@pytest.mark.parametrize("name", ["all_biases_tied", "dynamic_mqa", "odd_widths"])
def test_hidden_states_equal_those_of_pytorch(name, kernels):
    torch = pytest.importorskip("torch")
    from tests.helpers.reference_models import pair

    model, _ = pair(config_of(**SHAPES[name]))
    random = np.random.default_rng(0)
    state = {key: pack("f32", value.detach().numpy(), random) for key, value in model.state_dict().items()}
    ids = random.integers(0, model.config.vocab_size, 40)
    backend = NativeBackend(model.config, state, 2, slots=2)
    outputs = backend.forward([Chunk((0,), ids, 0, 40, "hidden")])
    with torch.no_grad():
        expected = model.double().model(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    assert outputs.logits.shape == (0, model.config.vocab_size)
    assert outputs.hidden.shape == expected.shape
    assert relative_rms(outputs.hidden, expected) < 1e-5


def test_a_batch_returns_logits_and_hidden_states_in_the_order_of_its_chunks():
    config = config_of()
    backend = native_backend(config, slots=5)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 12)
    kinds = ("hidden", "logits", "logits", "hidden", "hidden")
    chunks = [
        Chunk((page,), ids[page : page + 4], 0, rows, kind)
        for page, (rows, kind) in enumerate(zip((2, 4, 1, 0, 3), kinds, strict=True))
    ]
    outputs = backend.forward(chunks)
    alone = [backend.forward([chunk]) for chunk in chunks]
    assert (outputs.logits == np.concatenate([each.logits for each in alone])).all()
    assert (outputs.hidden == np.concatenate([each.hidden for each in alone])).all()
    assert (len(outputs.logits), len(outputs.hidden)) == (5, 5)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["heads_of_100", "dynamic_mqa"])
def test_written_pages_continue_with_the_same_bits(name, cache, kernels):
    config = config_of(**(SHAPES[name] | {"max_position_embeddings": 256}))
    first, second = native_backend(config, cache), native_backend(config, cache)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 150)
    expected = run(first, ids, [140, 10])[140:]
    data = first.read_pages((0, 2, 1))
    assert data.shape == (3, first.page_bytes)
    second.write_pages((3, 0, 2), data)
    assert (second.forward([Chunk((3, 2, 0), ids[140:], 140, 10)]).logits == expected).all()
    assert (second.read_pages((3, 2))[0] == data[0]).all()


@pytest.mark.parametrize("cache", CACHES)
def test_filled_pages_continue_with_the_same_bits(cache, kernels):
    """With one layer, the keys and values do not depend on the cache's type."""
    config = config_of(**(SHAPES["heads_of_100"] | {"num_hidden_layers": 1, "max_position_embeddings": 128}))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 110)
    source, expected_from, filled = (native_backend(config, kind) for kind in ("f32", cache, cache))
    run(source, ids[:100], [100])
    heads, width, padded = config.num_key_value_heads, config.head_dim, -(-config.head_dim // 16) * 16
    pages = source.read_pages((0, 1)).view(np.float32)
    keys = pages[:, : heads * width * 64].reshape(2, heads, width, 64)
    values = pages[:, heads * width * 64 :].reshape(2, heads, 64, padded)[..., :width]
    keys = keys.transpose(1, 0, 3, 2).reshape(1, heads, 128, width)[:, :, :100]
    values = values.transpose(1, 0, 2, 3).reshape(1, heads, 128, width)[:, :, :100]
    filled.fill_pages((1, 0), keys, values)
    expected = run(expected_from, ids, [100, 10])[100:]
    assert (filled.forward([Chunk((1, 0), ids[100:], 100, 10)]).logits == expected).all()


@pytest.mark.parametrize("cache", CACHES)
def test_cached_tokens_are_those_that_filled_the_pages(cache, kernels):
    config = config_of(**(SHAPES["heads_of_100"] | {"max_position_embeddings": 128}))
    backend, random = native_backend(config, cache), np.random.default_rng(0)
    shape = (config.num_hidden_layers, config.num_key_value_heads, 100, config.head_dim)
    parts = [random.standard_normal(shape, np.float32) for _ in range(2)]
    backend.fill_pages((1, 0), *parts)
    if cache == "q8_0":
        with pytest.raises(BackendError, match="q8_0"):
            backend.cached_tokens((1, 0), 100)
        return
    for result, part in zip(backend.cached_tokens((1, 0), 100), parts, strict=True):
        if cache == "f16":
            part = part.astype(np.float16)
        elif cache == "bf16":  # rounded to the nearest even number
            bits = part.view(np.uint32)
            part = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).view(np.float32)
        assert result.dtype == np.float32
        assert (result == part).all()


def test_filled_pages_hold_the_keys_of_pytorch():
    torch = pytest.importorskip("torch")
    from tests.helpers.reference_models import pair

    model, _ = pair(config_of(**SHAPES["all_biases_tied"]))
    random = np.random.default_rng(0)
    state = {key: pack("f32", value.detach().numpy(), random) for key, value in model.state_dict().items()}
    del state["lm_head.weight"]
    ids = random.integers(0, model.config.vocab_size, 40)
    with torch.no_grad():
        past = model(torch.from_numpy(ids[:30])[None], use_cache=True).past_key_values
        expected = model(torch.from_numpy(ids)[None]).logits[0, 30:].numpy()
    layers = [(keys[0].numpy(), values[0].numpy()) for keys, values in past]
    backend = NativeBackend(model.config, state, 2)
    backend.fill_pages((0,), *(np.stack([layer[part] for layer in layers]) for part in (0, 1)))
    assert relative_rms(backend.forward([Chunk((0,), ids[30:], 30, 10)]).logits, expected) < 1e-5


def test_invalid_accesses_to_pages_are_errors():
    config = config_of(max_position_embeddings=128)
    backend = native_backend(config)
    with pytest.raises(BackendError, match="has not been written"):
        backend.read_pages((1,))
    with pytest.raises(RequestError, match="page is 2; the cache has pages 0 to 1"):
        backend.read_pages((2,))
    with pytest.raises(RequestError, match="page is -1"):
        backend.write_pages((-1,), np.zeros((1, backend.page_bytes), np.uint8))
    with pytest.raises(RequestError, match=r"data is uint8 of shape \(1, 3\); it must be uint8 of shape"):
        backend.write_pages((0,), np.zeros((1, 3), np.uint8))
    shape = (config.num_hidden_layers, config.num_key_value_heads, 70, config.head_dim)
    with pytest.raises(RequestError, match="70 tokens do not fit in 1 pages of 64 tokens"):
        backend.fill_pages((0,), np.zeros(shape, np.float32), np.zeros(shape, np.float32))
    with pytest.raises(RequestError, match="values is float64"):
        backend.fill_pages((0, 1), np.zeros(shape, np.float32), np.zeros(shape))
    dynamic = native_backend(config_of(**SHAPES["dynamic_mqa"]))
    with pytest.raises(BackendError, match="depend on the length of the text"):
        dynamic.fill_pages((0,), np.zeros(shape, np.float32), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("embeddings", "text"),
    [
        (np.zeros((3, 5), np.float32), r"embeddings are float32 of shape \(3, 5\); they must be float32 of shape \(2,"),
        (np.zeros((2, 32)), "embeddings are float64"),
    ],
)
def test_embeddings_of_a_wrong_shape_or_type_are_errors(embeddings, text):
    backend = native_backend(config_of(hidden_size=32))
    with pytest.raises(RequestError, match=text):
        backend.forward([Chunk(consecutive_pages(2), np.zeros(2, np.int64), 0, embeddings=embeddings)])
