"""Adapters of the native backend, compared with changed weights in float64, alone and in mixed batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from puna.adapters import open_adapter
from puna.backend import Chunk, LowRank, consecutive_pages
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.native import NativeBackend
from tests.adapters.cases import IDS, LOGITS, base_config, base_tensors, write_case
from tests.helpers.configurations import config_of
from tests.helpers.native import pack, pack_state, relative_rms
from tests.helpers.random_weights import random_state
from tests.native.shapes import SHAPES
from tests.native.test_schedules import WIDE, run_schedule

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
               "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def random_adapter(
    config: LlamaConfig,
    rank: int,
    seed: int,
    parts: tuple[str, ...] = (),
    names: tuple[str, ...] = PROJECTIONS,
    head: bool = False,
) -> dict[str, LowRank]:
    """Returns changes of `names` in all layers, and of the head; `parts` can have "bias" and "row_scale"."""
    random = np.random.default_rng(seed)
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * width, config.num_key_value_heads * width
    attention, mlp = ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q)), ((inner, hidden),) * 2
    sizes = dict(zip(PROJECTIONS, (*attention, *mlp, (hidden, inner)), strict=True))
    matrices = {
        f"model.layers.{layer}.{name}.weight": sizes[name]
        for layer in range(config.num_hidden_layers)
        for name in names
    }
    if head:
        matrices["lm_head.weight"] = (config.vocab_size, hidden)

    def normal(*shape: int, mean: float = 0.0, spread: float = 0.1) -> np.ndarray:
        return (mean + spread * random.standard_normal(shape)).astype(np.float32)

    return {
        name: LowRank(
            normal(rank, columns), normal(rows, rank, spread=0.2),
            normal(rows) if "bias" in parts else None, normal(rows, mean=1.0) if "row_scale" in parts else None,
        )
        for name, (rows, columns) in matrices.items()
    }  # fmt: skip


def run_with(backend: NativeBackend, ids: np.ndarray, adapter: int, size: int | None = None) -> np.ndarray:
    """Returns the logits of all positions, in chunks of `size` tokens."""
    pages, size = consecutive_pages(len(ids)), size or len(ids)
    chunks = [Chunk(pages, ids[at : at + size], at, len(ids[at : at + size])) for at in range(0, len(ids), size)]
    return np.concatenate([backend.forward([replace(chunk, adapter=adapter)]).logits for chunk in chunks])


@pytest.mark.parametrize("name", ["multi_head", "odd_widths", "all_biases_tied", "dynamic_mqa"])
@pytest.mark.parametrize(
    ("rank", "parts"), [(16, ()), (3, ("bias",)), (20, ("bias", "row_scale")), (0, ("row_scale",))]
)
def test_logits_equal_those_of_changed_weights(name, rank, parts, kernels):
    torch = pytest.importorskip("torch")
    from tests.helpers.reference_models import pair

    model, _ = pair(config_of(**SHAPES.get(name, {})))
    random = np.random.default_rng(0)
    state = {key: pack("f32", value.detach().numpy(), random) for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, min(70, model.config.context_length))
    adapter = random_adapter(model.config, rank, 2, parts, head=True)
    backend = NativeBackend(model.config, state, 2)
    before = run_with(backend, ids, 0)
    number = backend.load_adapter(adapter)
    model.double()
    for key, change in adapter.items():
        layer = model.get_submodule(key.removesuffix(".weight"))
        scale = 1.0 if change.row_scale is None else torch.from_numpy(change.row_scale).double()[:, None]
        product = torch.from_numpy(change.b.astype(np.float64) @ change.a)
        layer.weight = torch.nn.Parameter(scale * (layer.weight.data + product))  # a tied embedding is unchanged
        if change.bias is not None:
            bias = torch.from_numpy(change.bias).double()
            layer.bias = torch.nn.Parameter(bias if layer.bias is None else layer.bias.data + bias)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    logits = run_with(backend, ids, number)
    assert relative_rms(logits, expected) < 1e-5
    assert relative_rms(before, expected) > 0.05
    assert (run_with(backend, ids, number, 1) == logits).all()
    assert (run_with(backend, ids, 0) == before).all()


@pytest.mark.parametrize("case", ["lora", "rslora", "patterns", "layers", "excluded", "parameters", "lora_bias"])
def test_logits_equal_those_of_peft(tmp_path, case, kernels):
    config = base_config("plain")
    adapter = open_adapter(write_case(tmp_path, case), config)
    random = np.random.default_rng(0)
    backend = NativeBackend(
        config, {key: pack("f32", value, random) for key, value in base_tensors("plain").items()}, 1
    )
    changes = {
        name: LowRank(change.a, change.b * np.float32(change.scale), change.bias)
        for name, change in adapter.low_rank.items()
    }
    expected = np.load(LOGITS)[case]
    logits = run_with(backend, IDS[0], backend.load_adapter(changes))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["q8_0", "bf16"])
def test_factors_that_are_rounded_change_logits_little(name, kernels):
    config = config_of(**WIDE)
    tensors = pack_state(name, random_state(config))
    ids = np.random.default_rng(1).integers(0, config.vocab_size, 60)
    adapter = random_adapter(config, 16, 2)
    rounded, exact = NativeBackend(config, tensors, 2), NativeBackend(config, tensors, 2, float32=True)
    errors = []
    for load in (False, True):
        pair = [run_with(each, ids, each.load_adapter(adapter) if load else 0) for each in (rounded, exact)]
        errors.append(relative_rms(*pair))
    assert errors[1] < max(2 * errors[0], 0.01)


@pytest.mark.parametrize(
    ("shape", "name", "cache"),
    [({}, "f32", "f32"), (SHAPES["all_biases_tied"], "bf16", "bf16"), (SHAPES["odd_widths"], "f16", "q8_0"),
     (SHAPES["longrope_gqa4"], "f32", "f16"), (WIDE, "q4_0", "f16"), (WIDE, "q4_K", "bf16")],
)  # fmt: skip
def test_requests_with_five_adapters_and_without_get_the_bits_they_get_alone(shape, name, cache, kernels):
    config = config_of(**shape)
    tensors = pack_state(name, random_state(config))
    backends = [NativeBackend(config, tensors, threads, slots=6, cache=cache) for threads in (1, 2, 3)]
    adapters = [
        random_adapter(config, 16, 1, head=True),
        random_adapter(config, 1, 2, ("bias",)),
        random_adapter(config, 40, 3, ("row_scale",), PROJECTIONS[::2]),
        random_adapter(config, 7, 4, ("bias", "row_scale"), PROJECTIONS[3:]),
        random_adapter(config, 0, 5, ("row_scale",), PROJECTIONS[1:3], head=True),
    ]
    for backend in backends:
        assert [backend.load_adapter(adapter) for adapter in adapters] == [1, 2, 3, 4, 5]
    random = np.random.default_rng(7)
    for number in range(6):
        texts = [random.integers(0, config.vocab_size, random.integers(1, 64)) for _ in range(6)]
        expected = [run_with(backends[0], text, adapter) for adapter, text in enumerate(texts)]
        ran = run_schedule(random, backends[number % 3], texts, expected, adapters=range(6))
        assert ran == sum(map(len, texts))


def test_a_dropped_adapter_cannot_be_used_and_the_others_remain():
    config = config_of()
    backend = NativeBackend(config, pack_state("f32", random_state(config)), 1)
    ids = np.arange(10)
    first, second = (backend.load_adapter(random_adapter(config, 4, seed)) for seed in (1, 2))
    expected = run_with(backend, ids, second)
    backend.drop_adapter(first)
    with pytest.raises(RequestError, match=f"chunk 0: there is no adapter {first}"):
        run_with(backend, ids, first)
    with pytest.raises(BackendError, match="no adapter of this number"):
        backend.drop_adapter(first)
    assert (run_with(backend, ids, second) == expected).all()
    assert backend.load_adapter(random_adapter(config, 4, 3)) == 3


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("model.embed_tokens.weight", {}, "changes model.embed_tokens.weight, but the native backend can change only"),
        ("lm_head.weight", {"a": np.ones((4, 3), np.float32)}, r"a for lm_head.weight has shape \(4, 3\)"),
        ("model.norm.weight", {}, "changes model.norm.weight, but"),
        ("model.layers.0.input_layernorm.weight", {}, "changes model.layers.0.input_layernorm.weight, but"),
        ("model.layers.9.self_attn.q_proj.weight", {}, "but the model has 2 layers"),
        ("model.layers.x.self_attn.q_proj.weight", {}, "but the model has 2 layers"),
        ("model.layers.0.self_attn.q_proj.weight", {"a": np.ones((4, 3), np.float32)}, r"a for .* has shape \(4, 3\)"),
        ("model.layers.0.self_attn.q_proj.weight", {"b": np.ones((3, 4), np.float32)}, r"b for .* has shape \(3, 4\)"),
        ("model.layers.0.mlp.down_proj.weight", {"bias": np.ones(3, np.float32)}, r"bias for .* has shape \(3,\)"),
        ("model.layers.0.mlp.down_proj.weight", {"row_scale": np.ones(3, np.float32)}, r"row_scale for .* has shape"),
    ],
)
def test_a_change_that_cannot_be_applied_is_an_error(name, change, text):
    config = config_of()
    backend = NativeBackend(config, pack_state("f32", random_state(config)), 1)
    adapter = random_adapter(config, 4, 1)
    valid = adapter.get(name, next(iter(adapter.values())))
    with pytest.raises(BackendError, match=text):
        backend.load_adapter(adapter | {name: replace(valid, **change)})
    assert backend.load_adapter(adapter) == 1
