"""The native backend: batches, pages of the cache, and errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puna.backend import Chunk
from puna.config import LlamaConfig
from puna.errors import BackendError, RequestError
from puna.native import NativeBackend, check_supported, machine
from tests.helpers.configurations import config_of
from tests.helpers.native import pack, pack_state, relative_rms, run
from tests.helpers.random_weights import random_state
from tests.native.shapes import EXTRA_SHAPES


def native_backend(config: LlamaConfig, slots: int = 1) -> NativeBackend:
    return NativeBackend(config, pack_state("f32", random_state(config)), 1, slots)


def test_kernel_builds_compute_almost_equal_logits(monkeypatch):
    if len(machine().kernels) < 2:
        pytest.skip("this processor supports only one kernel build")
    config = config_of(**EXTRA_SHAPES["odd_widths"])
    ids = np.random.default_rng(3).integers(0, 101, 60)
    logits = {}
    for name in machine().kernels:
        monkeypatch.setenv("PUNA_KERNELS", name)
        logits[name] = run(native_backend(config), ids, [60])
    for first, second in itertools.pairwise(logits.values()):
        assert relative_rms(first, second) < 2e-6


def test_freed_slots_return_their_pages():
    config = config_of(**EXTRA_SHAPES["long_context"])
    backend = native_backend(config, slots=2)
    pages = sorted(backend._free_pages)
    ids = np.random.default_rng(3).integers(0, 67, 300)
    backend.forward([Chunk(0, ids, 0), Chunk(1, ids[:70], 0)])
    assert len(backend._free_pages) == len(pages) - 5 - 2
    for slot in (0, 1, 1):
        backend.free(slot)
    assert sorted(backend._free_pages) == pages


def test_a_chunk_replaces_the_cache_from_its_start_on():
    config = config_of()
    backend = native_backend(config)
    ids = np.random.default_rng(3).integers(0, 67, 30)
    backend.forward([Chunk(0, ids[:20], 0)])
    expected = backend.forward([Chunk(0, ids[20:25], 20)])
    backend.forward([Chunk(0, ids[:5], 25)])
    assert (backend.forward([Chunk(0, ids[20:25], 20)]) == expected).all()


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (lambda ids: Chunk(0, ids[:2], 4), "tokens start at 4, but the cache holds 3 tokens"),
        (lambda ids: Chunk(1, np.array([3, 67]), 0), "token id 67 is outside the vocabulary, 0 to 66"),
        (lambda ids: Chunk(1, np.array([-1, 3]), 0), "token id -1"),
        (lambda ids: Chunk(1, np.array([], np.int64), 0), r"shape \(0,\)"),
        (lambda ids: Chunk(1, ids[:2], 0, 3), "logits is 3; it must be 0 to 2"),
        (lambda ids: Chunk(1, np.zeros(600, np.int64), 0), "more tokens of cache, but"),
    ],
)
def test_a_batch_that_cannot_run_leaves_the_caches_unchanged(chunk, text):
    config = config_of()
    backend = native_backend(config)
    ids = np.array([5, 9, 11, 2])
    backend.forward([Chunk(0, ids[:3], 0)])
    with pytest.raises(RequestError, match=text):
        backend.forward([chunk(ids)])
    repeated = backend.forward([Chunk(0, ids[3:], 3)])
    assert (repeated == run(native_backend(config), ids, [4])[3:]).all()


def test_an_unsupported_activation_is_an_error():
    with pytest.raises(BackendError, match="hidden_act 'gelu'"):
        check_supported(config_of(hidden_act="gelu"))


def test_a_missing_tensor_or_an_invalid_shape_is_an_error():
    config = config_of()
    state = pack_state("f32", random_state(config))
    incomplete = {name: weight for name, weight in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(BackendError, match="lacks a layer's matrix"):
        NativeBackend(config, incomplete)
    state["model.layers.0.mlp.up_proj.weight"] = pack("f32", np.zeros((3, 4)), np.random.default_rng(0))
    with pytest.raises(BackendError, match=r"up_proj\.weight \(f32, shape \(3, 4\)\): its shape"):
        NativeBackend(config, state)


def test_unknown_kernels_are_an_error(monkeypatch):
    monkeypatch.setenv("PUNA_KERNELS", "mmx")
    config = config_of()
    with pytest.raises(BackendError, match="PUNA_KERNELS is 'mmx'"):
        native_backend(config)
