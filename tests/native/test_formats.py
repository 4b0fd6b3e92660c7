"""Every format of weights: what the panels hold, and the logits they give, on every build of the kernels."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from puna.backend import Chunk
from puna.errors import BackendError
from puna.formats.blocks import FORMATS
from puna.native import NativeBackend, machine
from puna.native.library import NativeTensor, load_library
from tests.native.test_backend import relative_rms, run
from tests.native.weights import Packed, model_in, packed

torch = pytest.importorskip("torch")

from tests.model.twins import config_of, pair  # noqa: E402

BLOCKS = [name for name, block in FORMATS.items() if block.values > 1]
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
}
TOLERANCE = {"f32": 1e-5, "f16": 1e-2, "bf16": 1e-2}
"""Relative RMS of logits; integer formats 3e-2, since activations are rounded to 8 bits as well."""


@pytest.fixture(params=machine().kernels)
def kernels(request, monkeypatch) -> str:
    monkeypatch.setenv("PUNA_KERNELS", request.param)
    return request.param


def read_back(backend: NativeBackend, kind: int, layer: int, shape: tuple[int, int]) -> np.ndarray:
    out = np.empty(shape, np.float32)
    assert backend._library.puna_model_read(backend._model, kind, layer, out.ctypes.data) == 0
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_panels_hold_the_file_s_values(name):
    """Bit for bit; rows in another order, and a last panel that is not full."""
    config = config_of(vocab_size=71, **SIZES)
    model, _ = pair(config)
    tensors = model_in(name, {key: value.detach().numpy() for key, value in model.state_dict().items()})
    backend = NativeBackend(config, tensors, 2)
    for key, layer in (
        ("model.embed_tokens.weight", -1),
        ("lm_head.weight", -1),
        ("model.layers.1.self_attn.q_proj.weight", 1),
        ("model.layers.0.mlp.down_proj.weight", 0),
    ):
        wanted = tensors[key].to_float32()
        assert (read_back(backend, _kind(key), layer, wanted.shape) == wanted).all()


def _kind(key: str) -> int:
    return {"embed_tokens": 0, "lm_head": 2, "q_proj": 5, "down_proj": 11}[key.split(".")[-2]]


@pytest.mark.parametrize(
    ("name", "cache"),
    [(name, "f16") for name in FORMATS]
    + [(name, cache) for name in ("f32", "q4_0", "q6_K") for cache in ("f32", "bf16", "q8_0")],
)
def test_logits_in_every_format(name, cache, kernels):
    config = config_of(vocab_size=71, max_position_embeddings=320, **SIZES)
    model, _ = pair(config)
    tensors = model_in(name, {key: value.detach().numpy() for key, value in model.state_dict().items()})
    model.load_state_dict({key: torch.from_numpy(tensor.to_float32()) for key, tensor in tensors.items()})
    ids = np.random.default_rng(1).integers(0, 71, 300)
    with torch.no_grad():
        wanted = model.double()(torch.from_numpy(ids)[None]).logits[0].numpy()
    backend = NativeBackend(config, tensors, 2, cache=cache)
    whole = run(backend, ids, [300])
    limit = max(TOLERANCE.get(name, 3e-2), {"f32": 0.0, "q8_0": 3e-2}.get(cache, 1e-2))
    assert relative_rms(whole, wanted) < limit
    assert (run(backend, ids, [100, 1, 2, 3, 4, 5, 7, 12, 64] + [1] * 102) == whole).all()


@pytest.mark.parametrize("columns", [32, 96, 288, 576, pytest.param(1536, marks=pytest.mark.slow)])
def test_rows_of_odd_lengths(columns, kernels):
    """A hidden size of 576 and the like, in formats of 32 values and of none."""
    for name in ("q4_0", "q4_1", "q5_1", "q8_0", "iq4_nl", "bf16", "f16"):
        config = config_of(
            vocab_size=50,
            hidden_size=columns,
            intermediate_size=columns,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.5 / columns**0.5,
        )
        model, _ = pair(config)
        tensors = model_in(name, {key: value.detach().numpy() for key, value in model.state_dict().items()})
        model.load_state_dict({key: torch.from_numpy(tensor.to_float32()) for key, tensor in tensors.items()})
        ids = np.random.default_rng(1).integers(0, 50, 20)
        with torch.no_grad():
            wanted = model.double()(torch.from_numpy(ids)[None]).logits[0].numpy()
        assert relative_rms(run(NativeBackend(config, tensors), ids, [20]), wanted) < TOLERANCE.get(name, 3e-2)


@pytest.mark.parametrize("target", ["q8_0", "Q4_0", "q4_k"])
@pytest.mark.parametrize("source", ["f32", "f16", "bf16"])
def test_quantize_while_packing(source, target):
    """q8_0 and q4_0 as gguf's own quantiser rounds; q4_K nearer than q4_1, which spends more bits."""
    quants = pytest.importorskip("gguf.quants")
    types = pytest.importorskip("gguf").GGMLQuantizationType
    config = config_of(vocab_size=71, **SIZES)
    random = np.random.default_rng(3)
    model, _ = pair(config)
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    state = {key: random.normal(0, 0.02, value.shape) if value.ndim == 2 else value for key, value in state.items()}
    tensors = model_in(source, state)
    key = "model.layers.1.self_attn.q_proj.weight"
    wanted = tensors[key].to_float32()
    found = read_back(NativeBackend(config, tensors, quantize=target), 5, 1, wanted.shape)
    error = np.sqrt(((found - wanted) ** 2).mean())
    kind = {"q8_0": types.Q8_0, "q4_0": types.Q4_0, "q4_k": types.Q4_1}[target.lower()]
    theirs = quants.dequantize(quants.quantize(wanted, kind), kind)
    limit = np.sqrt(((theirs - wanted) ** 2).mean())
    assert error <= limit * (1.0 if target == "q4_k" else 1.001)
    assert error > 0


def test_quantize_is_refused_with_a_reason():
    config = config_of(vocab_size=71, **SIZES)
    model, _ = pair(config)
    state = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    with pytest.raises(BackendError, match="must be one of q8_0, q4_0, q4_K"):
        NativeBackend(config, model_in("f32", state), quantize="q3_K")
    with pytest.raises(BackendError, match="quantised already"):
        NativeBackend(config, model_in("q4_1", state), quantize="q4_0")
    narrow = config_of(vocab_size=71, hidden_size=96, num_attention_heads=2, num_key_value_heads=1)
    state = {key: value.detach().numpy() for key, value in pair(narrow)[0].state_dict().items()}
    with pytest.raises(BackendError, match="rows of 96 values, which q4_K cannot pack"):
        NativeBackend(narrow, model_in("f32", state), quantize="q4_K")
    narrow = config_of(vocab_size=71, **SIZES)
    state = {key: value.detach().numpy() for key, value in pair(narrow)[0].state_dict().items()}
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    with pytest.raises(BackendError, match="not a finite number"):
        NativeBackend(narrow, model_in("f32", state), quantize="q8_0")


def test_an_unknown_cache_is_refused():
    config = config_of(**SIZES)
    state = {key: value.detach().numpy() for key, value in pair(config)[0].state_dict().items()}
    with pytest.raises(BackendError, match="cache is 'int4'"):
        NativeBackend(config, model_in("f32", state), cache="int4")


def test_the_library_refuses_rows_that_are_no_whole_blocks():
    config = config_of(**SIZES)
    state = {key: value.detach().numpy() for key, value in pair(config)[0].state_dict().items()}
    backend = NativeBackend(config, model_in("f32", state))
    data = packed("q8_0", np.zeros((67, 256)), np.random.default_rng(0)).data
    tensor = NativeTensor(data.ctypes.data, None, 67, 250, FORMATS["q8_0"].ggml_id, -1)
    library = load_library()
    assert library.puna_model_load(backend._model, 0, -1, ctypes.byref(tensor)) == 1
    assert b"shape" in library.puna_error()
    tensor = NativeTensor(data.ctypes.data, None, 67, 256, 99, -1)
    assert library.puna_model_load(backend._model, 0, -1, ctypes.byref(tensor)) == 1
    assert b"format" in library.puna_error()


def test_a_damaged_scale_is_seen_in_the_logits():
    """A block whose scale is NaN gives NaN, which sampling refuses; it is not rounded away."""
    config = config_of(vocab_size=71, **SIZES)
    state = {key: value.detach().numpy() for key, value in pair(config)[0].state_dict().items()}
    tensors = model_in("q8_0", state)
    weight: Packed = tensors["model.layers.0.mlp.up_proj.weight"]
    weight.data[:2] = [0xFF, 0x7F]
    logits = NativeBackend(config, tensors).forward([Chunk(0, np.array([3]), 0)])
    assert np.isnan(logits).all()


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00145, 0x7F812345, 0xFFC00001])
def test_a_damaged_number_is_seen_in_the_logits(name, bits, kernels):
    """Whatever the bits of a NaN, attention's exponentials keep it one."""
    config = config_of(vocab_size=71, **SIZES)
    state = {key: value.detach().numpy().copy() for key, value in pair(config)[0].state_dict().items()}
    state[f"model.layers.0.self_attn.{name}.weight"].view(np.uint32)[0, 3] = bits
    logits = NativeBackend(config, model_in("f32", state)).forward([Chunk(0, np.arange(3), 0)])
    assert np.isnan(logits).all()


def test_a_batch_of_nothing_is_refused():
    config = config_of(vocab_size=71, **SIZES)
    state = {key: value.detach().numpy() for key, value in pair(config)[0].state_dict().items()}
    backend = NativeBackend(config, model_in("f32", state))
    assert backend._library.puna_forward(backend._model, None, 0, 0, None) == 1
    assert b"a batch needs a chunk" in backend._library.puna_error()
