"""Every weight format: values read back from the packed panels, and logits, with every build of the kernels."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest

from puna.backend import Chunk
from puna.config import LlamaConfig
from puna.errors import BackendError
from puna.formats.blocks import FORMATS
from puna.native import NativeBackend
from puna.native.library import NativeTensor, load_library
from tests.helpers.blocks import extreme_blocks
from tests.helpers.configurations import config_of
from tests.helpers.native import PackedTensor, pack, pack_state, relative_rms, run
from tests.helpers.random_weights import random_state
from tests.helpers.reference_forward import ReferenceForward, observe

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
}

SUM_TOLERANCE = 2e-6
"""Limit of the relative RMS error of one stage. The native pass and the reference multiply the same rounded inputs, so
only the order and the precision of sums differ. The error of a float32 sum of n products is about sqrt(n) / 2 * 2^-24:
7e-7 for 512 products, 1.2e-6 for 1536. Measured: up to 5e-7 in float formats and 1.5e-7 in integer formats, whose
products are summed exactly within a block."""

CACHE_TOLERANCE = 1e-4
"""The same limit for attention over a cache in a smaller type. The two passes compute keys and values that differ by
about 2e-7, and round them to that type. If a midpoint between two values of the type separates the two results, the
rounded elements differ by one step. A step is 2^-11 (f16), 2^-8 (bf16) or, in q8_0, 1/127 of the largest of 32
elements. The share of elements that differ is 2e-7 divided by the step, so that the RMS is about sqrt(2e-7 * step):
1e-5 to 4e-5. Measured: up to 5e-5."""


def check_stages(
    backend: NativeBackend, config: LlamaConfig, tensors: dict, ids: np.ndarray, kernels: str, cache: str
) -> np.ndarray:
    """Compares each stage of the pass over `ids`, one token at a time, with the reference; returns the logits."""
    magnitudes, logits = observe(backend, ids)
    for stage in ReferenceForward(config, tensors, kernels, cache).stages(ids, magnitudes, logits):
        attention = stage.name.endswith("o_proj.weight")
        limit = CACHE_TOLERANCE if attention and cache != "f32" else SUM_TOLERANCE
        assert relative_rms(stage.native, stage.expected) < limit, stage.name
    return logits


@functools.cache
def small_model(name: str) -> tuple[LlamaConfig, dict[str, PackedTensor]]:
    """Returns a model whose matrices have the format `name`; tests only read it."""
    config = config_of(vocab_size=71, max_position_embeddings=320, **SIZES)
    return config, pack_state(name, random_state(config))


@functools.lru_cache(maxsize=1)
def square_model(columns: int) -> tuple[LlamaConfig, dict[str, np.ndarray]]:
    """Returns a model of one layer with square matrices; tests only read it."""
    config = config_of(
        vocab_size=50,
        hidden_size=columns,
        intermediate_size=columns,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5 / columns**0.5,
    )
    return config, random_state(config)


def read_back(backend: NativeBackend, kind: int, layer: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns the values of a matrix that the backend has packed."""
    out = np.empty(shape, np.float32)
    assert backend._library.puna_model_read(backend._model, kind, layer, out.ctypes.data) == 0
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_panels_hold_the_values_of_the_file(name):
    """Values are equal bit for bit, also with permuted rows and an incomplete last panel."""
    config = config_of(vocab_size=71, **SIZES)
    tensors = pack_state(name, random_state(config))
    backend = NativeBackend(config, tensors, 2)
    for key, layer in (
        ("model.embed_tokens.weight", -1),
        ("lm_head.weight", -1),
        ("model.layers.1.self_attn.q_proj.weight", 1),
        ("model.layers.0.mlp.down_proj.weight", 0),
    ):
        expected = tensors[key].to_float32()
        assert (read_back(backend, _kind(key), layer, expected.shape) == expected).all()


@pytest.mark.parametrize("name", [form.name for form in FORMATS.values() if form.values > 1])
def test_panels_hold_values_of_extreme_scales(name):
    """Scales are zero, subnormal, the largest finite number, infinite and NaN."""
    config = config_of(vocab_size=71, **SIZES)
    tensors = pack_state(name, random_state(config))
    embedding = tensors["model.embed_tokens.weight"]
    embedding.data = extreme_blocks(embedding.format, embedding.data.size // embedding.format.bytes).reshape(-1)
    backend = NativeBackend(config, tensors, 2)
    np.testing.assert_array_equal(read_back(backend, 0, -1, embedding.shape), embedding.to_float32())


def _kind(key: str) -> int:
    """Returns the number by which the library identifies the kind of a matrix."""
    return {"embed_tokens": 0, "lm_head": 2, "q_proj": 5, "down_proj": 11}[key.split(".")[-2]]


@pytest.mark.parametrize(
    ("name", "cache"),
    [(name, "f32") for name in FORMATS]
    + [("q4_0", cache) for cache in ("f16", "bf16", "q8_0")]
    + [pytest.param(name, "f16", marks=pytest.mark.slow) for name in FORMATS if name != "q4_0"]
    + [pytest.param(name, cache, marks=pytest.mark.slow) for name in ("f32", "q6_K") for cache in ("bf16", "q8_0")],
)
def test_logits_in_every_format_equal_those_of_the_reference(name, cache, kernels):
    """Attention over many pages depends on the format of the cache alone: one format of weights has a long text."""
    config, tensors = small_model(name)
    size = 300 if name == "q4_0" else 150
    ids = np.random.default_rng(1).integers(0, 71, size)
    logits = check_stages(NativeBackend(config, tensors, 1, cache=cache), config, tensors, ids, kernels, cache)
    backend = NativeBackend(config, tensors, 2, cache=cache)
    assert (run(backend, ids, [size]) == logits).all()
    assert (run(backend, ids, [size // 3, 1, 2, 3, 4, 5, 7, 12, 64] + [1] * (size - size // 3 - 98)) == logits).all()


@pytest.mark.parametrize("names", [("q8_0", "q4_K"), ("q6_K", "q5_1", "bf16"), ("f32", "mxfp4", "iq2_s")])
def test_matrices_of_several_formats_share_one_rounded_input(names, kernels):
    config, _ = small_model(names[0])
    packed = [small_model(name)[1] for name in names]
    tensors = {key: packed[index % len(packed)][key] for index, key in enumerate(packed[0])}
    ids = np.random.default_rng(3).integers(0, 71, 70)
    backend = NativeBackend(config, tensors, 2, cache="f32")
    logits = check_stages(backend, config, tensors, ids, kernels, "f32")
    assert (run(backend, ids, [len(ids)]) == logits).all()


@pytest.mark.parametrize("columns", [32, 96, 288, *(pytest.param(n, marks=pytest.mark.slow) for n in (576, 1536))])
def test_logits_with_rows_that_end_within_an_activation_block_equal_the_reference(columns, kernels):
    """Matrices have rows of lengths such as 576, in formats with blocks of 32 weights and in float formats."""
    config, state = square_model(columns)
    for name in ("q4_0", "q4_1", "q5_1", "q8_0", "iq4_nl", "bf16", "f16"):
        tensors = pack_state(name, state)
        ids = np.random.default_rng(1).integers(0, 50, 20)
        backend = NativeBackend(config, tensors, cache="f32")
        logits = check_stages(backend, config, tensors, ids, kernels, "f32")
        assert (run(backend, ids, [20]) == logits).all()


@pytest.mark.parametrize("target", ["q8_0", "Q4_0", "q4_k"])
@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
def test_quantising_while_packing_is_as_accurate_as_the_package_gguf(source, target):
    """The error of q8_0 and q4_0 is that of gguf's quantiser; the error of q4_K is below that of the larger q4_1."""
    quants = pytest.importorskip("gguf.quants")
    types = pytest.importorskip("gguf").GGMLQuantizationType
    config = config_of(vocab_size=71, **SIZES)
    random = np.random.default_rng(3)
    state = random_state(config)
    state = {key: random.normal(0, 0.02, value.shape) if value.ndim == 2 else value for key, value in state.items()}
    tensors = pack_state(source, state)
    key = "model.layers.1.self_attn.q_proj.weight"
    expected = tensors[key].to_float32()
    result = read_back(NativeBackend(config, tensors, quantize=target), 5, 1, expected.shape)
    error = np.sqrt(((result - expected) ** 2).mean())
    kind = {"q8_0": types.Q8_0, "q4_0": types.Q4_0, "q4_k": types.Q4_1}[target.lower()]
    quantised = quants.dequantize(quants.quantize(expected, kind), kind)
    limit = np.sqrt(((quantised - expected) ** 2).mean())
    assert error <= limit * (1.0 if target == "q4_k" else 1.001)
    assert error > 0


def test_the_error_for_an_unusable_quantize_gives_the_reason():
    config = config_of(vocab_size=71, **SIZES)
    state = random_state(config)
    with pytest.raises(BackendError, match="must be one of q8_0, q4_0, q4_K"):
        NativeBackend(config, pack_state("f32", state), quantize="q3_K")
    with pytest.raises(BackendError, match="quantised already"):
        NativeBackend(config, pack_state("q4_1", state), quantize="q4_0")
    narrow = config_of(vocab_size=71, hidden_size=96, num_attention_heads=2, num_key_value_heads=1)
    state = random_state(narrow)
    with pytest.raises(BackendError, match="rows of 96 values, which q4_K cannot pack"):
        NativeBackend(narrow, pack_state("f32", state), quantize="q4_K")
    state = random_state(config)
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    with pytest.raises(BackendError, match="not a finite number"):
        NativeBackend(config, pack_state("f32", state), quantize="q8_0")


def test_an_unknown_cache_type_is_refused():
    config = config_of(**SIZES)
    state = random_state(config)
    with pytest.raises(BackendError, match="cache is 'int4'"):
        NativeBackend(config, pack_state("f32", state), cache="int4")


def test_the_library_refuses_rows_of_partial_blocks():
    config = config_of(**SIZES)
    state = random_state(config)
    backend = NativeBackend(config, pack_state("f32", state))
    data = pack("q8_0", np.zeros((67, 256)), np.random.default_rng(0)).data
    tensor = NativeTensor(data.ctypes.data, None, 67, 250, FORMATS["q8_0"].ggml_id, -1)
    library = load_library()
    assert library.puna_model_load(backend._model, 0, -1, ctypes.byref(tensor)) == 1
    assert b"shape" in library.puna_error()
    tensor = NativeTensor(data.ctypes.data, None, 67, 256, 99, -1)
    assert library.puna_model_load(backend._model, 0, -1, ctypes.byref(tensor)) == 1
    assert b"format" in library.puna_error()


def test_a_nan_scale_makes_the_logits_nan():
    """The logits are NaN if the scale of a block is NaN, so that sampling refuses them."""
    config = config_of(vocab_size=71, **SIZES)
    state = random_state(config)
    tensors = pack_state("q8_0", state)
    weight: PackedTensor = tensors["model.layers.0.mlp.up_proj.weight"]
    weight.data[:2] = [0xFF, 0x7F]
    logits = NativeBackend(config, tensors).forward([Chunk((0,), np.array([3]), 0)]).logits
    assert np.isnan(logits).all()


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00145, 0x7F812345, 0xFFC00001])
def test_a_nan_weight_makes_the_logits_nan(name, bits, kernels):
    """The exponential function in attention returns NaN for every bit pattern of NaN."""
    config = config_of(vocab_size=71, **SIZES)
    state = random_state(config)
    state[f"model.layers.0.self_attn.{name}.weight"].view(np.uint32)[0, 3] = bits
    logits = NativeBackend(config, pack_state("f32", state)).forward([Chunk((0,), np.arange(3), 0)]).logits
    assert np.isnan(logits).all()


def test_an_empty_batch_is_refused():
    config = config_of(vocab_size=71, **SIZES)
    state = random_state(config)
    backend = NativeBackend(config, pack_state("f32", state))
    assert backend._library.puna_forward(backend._model, None, 0, 0, None, None) == 1
    assert b"a batch must have at least one chunk" in backend._library.puna_error()
