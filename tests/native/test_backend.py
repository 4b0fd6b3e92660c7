"""The native forward pass: parity with PyTorch, and the same bits whatever runs beside a request."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puna.backend import Chunk
from puna.errors import BackendError, RequestError
from puna.native import NativeBackend, check_supported, machine
from puna.native.rope import fixed_frequencies

torch = pytest.importorskip("torch")

from puna.model.rope import LlamaRotaryEmbedding  # noqa: E402
from tests.model.twins import CONFIGURATIONS, DYNAMIC, config_of, longrope, pair  # noqa: E402

FIXED = [name for name in CONFIGURATIONS if not name.startswith(("dynamic", "longrope", "linear_gelu"))]
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
    """A tensor as the backend reads it."""

    def __init__(self, values) -> None:
        self.values = values

    def to_float32(self) -> np.ndarray:
        return self.values.detach().numpy()


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


@pytest.mark.parametrize("name", ["gqa2", "all_biases_tied", "odd_widths", "long_context"])
def test_the_same_bits_in_random_schedules(name, kernels):
    """Random mates, pieces, pages and thread counts: every row equals its solo run."""
    model, _ = pair(config_of(**SHAPES[name]))
    random = np.random.default_rng(7)
    backends = [native(model, threads, slots=4) for threads in (1, 2, 3)]
    longest = model.config.context_length
    texts = [random.integers(0, model.config.vocab_size, random.integers(1, longest)) for _ in range(4)]
    solo = [run(backends[0], text, [len(text)]) for text in texts]
    for backend in backends * 4:
        done = [0] * len(texts)
        while any(at < len(text) for at, text in zip(done, texts, strict=True)):
            batch, owners = [], []
            for index in random.permutation(len(texts)).tolist():
                left = len(texts[index]) - done[index]
                if left and random.random() < 0.8:
                    size = int(random.integers(1, min(left, random.choice([1, 8, 90])) + 1))
                    tokens = texts[index][done[index] : done[index] + size]
                    batch.append(Chunk(index, tokens, done[index], int(random.integers(0, size + 1))))
                    owners.append(index)
            logits = backend.forward(batch)
            row = 0
            for chunk, index in zip(batch, owners, strict=True):
                done[index] += len(chunk.tokens)
                wanted = solo[index][done[index] - chunk.logits : done[index]]
                assert (logits[row : row + chunk.logits] == wanted).all()
                row += chunk.logits
        for index in range(len(texts)):
            backend.free(index)


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
        (lambda ids: Chunk(1, np.zeros(600, np.int64), 0), "no page of the cache is free"),
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
    wide = config_of()
    for fields, word in (
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": DYNAMIC}, "rope type 'dynamic'"),
        ({"rope_scaling": longrope(wide.head_dim // 1)}, "rope type 'longrope'"),
    ):
        with pytest.raises(BackendError, match=word):
            check_supported(config_of(**fields))


def test_a_missing_or_misshapen_tensor_is_refused():
    model, _ = pair(config_of())
    state = {name: Weight(value) for name, value in model.state_dict().items()}
    short = {name: weight for name, weight in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(BackendError, match="lacks a layer's matrix"):
        NativeBackend(model.config, short)
    state["model.layers.0.mlp.up_proj.weight"] = Weight(torch.zeros(3, 4))
    with pytest.raises(BackendError, match=r"up_proj\.weight of shape \(3, 4\)"):
        NativeBackend(model.config, state)


def test_unknown_kernels_are_refused(monkeypatch):
    monkeypatch.setenv("PUNA_KERNELS", "mmx")
    model, _ = pair(config_of())
    with pytest.raises(BackendError, match="PUNA_KERNELS is 'mmx'"):
        native(model)


@pytest.mark.parametrize("name", [*FIXED, "linear"])
def test_frequencies_are_the_model_s(name):
    config = config_of(**SHAPES[name])
    ours, scale = fixed_frequencies(config)
    theirs = LlamaRotaryEmbedding(config)
    np.testing.assert_allclose(ours, theirs.inv_freq.numpy(), rtol=3e-7)
    assert scale == pytest.approx(theirs.scaling)
