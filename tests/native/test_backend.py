"""The native forward pass: parity with PyTorch, and the same bits whatever runs beside a request."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puna.backend import Chunk
from puna.errors import BackendError, RequestError
from puna.formats.blocks import FORMATS
from puna.native import NativeBackend, check_supported, machine
from puna.native.rope import Rope

torch = pytest.importorskip("torch")

from puna.model.rope import LlamaRotaryEmbedding  # noqa: E402
from tests.model.twins import CONFIGURATIONS, config_of, pair  # noqa: E402

FIXED = [name for name in CONFIGURATIONS if name != "linear_gelu"]
ODD = {
    "odd_widths": {"hidden_size": 40, "intermediate_size": 52, "vocab_size": 101, "num_key_value_heads": 2},
    "heads_of_100": {"head_dim": 100, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1},
    "heads_of_48": {"head_dim": 48, "vocab_size": 33},
    "heads_of_128": {"head_dim": 128, "num_key_value_heads": 2},
    "long_context": {"max_position_embeddings": 512},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}
SHAPES = {**{name: CONFIGURATIONS[name] for name in FIXED}, **ODD}


class Weight:
    """A float32 tensor as the backend reads it."""

    format = FORMATS["f32"]
    order = None

    def __init__(self, values) -> None:
        self.values = values.detach().numpy()
        self.shape = self.values.shape

    @property
    def data(self) -> np.ndarray:
        return np.ascontiguousarray(self.values).reshape(-1).view(np.uint8)

    def to_float32(self) -> np.ndarray:
        return self.values

    def release(self) -> None:
        pass


def native(model, threads: int = 1, slots: int = 1) -> NativeBackend:
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return NativeBackend(model.config, {name: Weight(value) for name, value in state.items()}, threads, slots)


def run(backend: NativeBackend, ids: np.ndarray, pieces: list[int], slot: int = 0) -> np.ndarray:
    """Logits of every position, the ids read in pieces of these sizes."""
    rows, start = [], 0
    for size in pieces:
        tokens = ids[start : start + size]
        rows.append(backend.forward([Chunk(slot, tokens, start, len(tokens))]))
        start += len(tokens)
    backend.free(slot)
    return np.concatenate(rows)


def relative_rms(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean()))


@pytest.fixture(params=machine().kernels)
def kernels(request, monkeypatch) -> str:
    """Each build of the kernels this processor can run."""
    monkeypatch.setenv("PUNA_KERNELS", request.param)
    return request.param


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_pytorch_s(name, kernels):
    model, _ = pair(config_of(**SHAPES[name]))
    length = min(200, model.config.context_length)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, length)
    with torch.no_grad():
        wanted = model.double()(torch.from_numpy(ids)[None]).logits[0].numpy()
    backend = native(model.float(), threads=2)
    assert relative_rms(run(backend, ids, [length]), wanted) < 1e-5
    assert relative_rms(run(backend, ids, [1] * length), wanted) < 1e-5


def test_kernels_agree(monkeypatch):
    if len(machine().kernels) < 2:
        pytest.skip("this processor runs one build of the kernels")
    model, _ = pair(config_of(**ODD["odd_widths"]))
    ids = np.random.default_rng(3).integers(0, 101, 60)
    found = {}
    for name in machine().kernels:
        monkeypatch.setenv("PUNA_KERNELS", name)
        found[name] = run(native(model), ids, [60])
    for first, second in itertools.pairwise(found.values()):
        assert relative_rms(first, second) < 2e-6


def test_pages_are_given_back():
    model, _ = pair(config_of(**ODD["long_context"]))
    backend = native(model, slots=2)
    pages = sorted(backend._free_pages)
    ids = np.random.default_rng(3).integers(0, 67, 300)
    backend.forward([Chunk(0, ids, 0), Chunk(1, ids[:70], 0)])
    assert len(backend._free_pages) == len(pages) - 5 - 2
    for slot in (0, 1, 1):
        backend.free(slot)
    assert sorted(backend._free_pages) == pages


def test_what_lies_beyond_a_chunk_s_start_is_dropped():
    model, _ = pair(config_of())
    backend = native(model)
    ids = np.random.default_rng(3).integers(0, 67, 30)
    backend.forward([Chunk(0, ids[:20], 0)])
    wanted = backend.forward([Chunk(0, ids[20:25], 20)])
    backend.forward([Chunk(0, ids[:5], 25)])
    assert (backend.forward([Chunk(0, ids[20:25], 20)]) == wanted).all()


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (lambda ids: Chunk(0, ids[:2], 4), "tokens start at 4, but the cache holds 3"),
        (lambda ids: Chunk(1, np.array([3, 67]), 0), "token id 67 is outside the vocabulary, 0 to 66"),
        (lambda ids: Chunk(1, np.array([-1, 3]), 0), "token id -1"),
        (lambda ids: Chunk(1, np.array([], np.int64), 0), r"shape \(0,\)"),
        (lambda ids: Chunk(1, ids[:2], 0, 3), "logits of 3 tokens"),
        (lambda ids: Chunk(1, np.zeros(600, np.int64), 0), "more tokens of cache, and"),
    ],
)
def test_batches_that_cannot_run_change_nothing(chunk, text):
    model, _ = pair(config_of())
    backend = native(model)
    ids = np.array([5, 9, 11, 2])
    backend.forward([Chunk(0, ids[:3], 0)])
    with pytest.raises(RequestError, match=text):
        backend.forward([chunk(ids)])
    again = backend.forward([Chunk(0, ids[3:], 3)])
    assert (again == run(native(model), ids, [4])[3:]).all()


def test_what_it_lacks_is_refused_by_name():
    with pytest.raises(BackendError, match="hidden_act 'gelu'"):
        check_supported(config_of(hidden_act="gelu"))


def test_a_missing_or_misshapen_tensor_is_refused():
    model, _ = pair(config_of())
    state = {name: Weight(value) for name, value in model.state_dict().items()}
    short = {name: weight for name, weight in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(BackendError, match="lacks a layer's matrix"):
        NativeBackend(model.config, short)
    state["model.layers.0.mlp.up_proj.weight"] = Weight(torch.zeros(3, 4))
    with pytest.raises(BackendError, match=r"up_proj\.weight \(f32, shape \(3, 4\)\): its shape"):
        NativeBackend(model.config, state)


def test_unknown_kernels_are_refused(monkeypatch):
    monkeypatch.setenv("PUNA_KERNELS", "mmx")
    model, _ = pair(config_of())
    with pytest.raises(BackendError, match="PUNA_KERNELS is 'mmx'"):
        native(model)


@pytest.mark.parametrize("name", SHAPES)
def test_frequencies_are_the_model_s(name):
    config = config_of(**SHAPES[name])
    ours, theirs = Rope(config), LlamaRotaryEmbedding(config)
    assert ours.scale == pytest.approx(theirs.scaling)
    assert ours.by_length == theirs.by_length
    for first, last, inv_freq in ours.runs(3, config.context_length - 3):
        for position in (3 + first, 3 + last - 1):
            wanted = theirs._of_length(torch.tensor([[[position + 1]]])) if theirs.by_length else theirs.inv_freq
            np.testing.assert_allclose(inv_freq, wanted.numpy().reshape(-1), rtol=1e-6)
