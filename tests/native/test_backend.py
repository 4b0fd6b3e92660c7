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


def test_sequences_can_share_full_pages():
    """The keys and values of a page depend only on its tokens and the tokens before it."""
    backend = native_backend(config_of(max_position_embeddings=512))
    ids = np.random.default_rng(3).integers(0, 67, 200)
    other = np.concatenate([ids[:128], ids[::-1][:40]])
    expected = run(native_backend(backend.config), other, [168])
    backend.forward([Chunk((3, 1, 0, 5), ids, 0)])
    shared, rest = (3, 1, 2), other[128:]
    assert (backend.forward([Chunk(shared, rest, 128, 40)]).logits == expected[128:]).all()
    both = backend.forward([Chunk((3, 1, 0, 5), ids[199:], 199), Chunk((3, 1, 4), rest, 128, 40)]).logits
    assert (both[0] == run(native_backend(backend.config), ids, [200])[-1]).all()
    assert (both[1:] == expected[128:]).all()


def test_a_chunk_replaces_the_cache_from_its_start_on():
    config = config_of()
    backend = native_backend(config)
    ids = np.random.default_rng(3).integers(0, 67, 30)
    backend.forward([Chunk((0,), ids[:20], 0)])
    expected = backend.forward([Chunk((0,), ids[20:25], 20)]).logits
    backend.forward([Chunk((0,), ids[:5], 25)])
    assert (backend.forward([Chunk((0,), ids[20:25], 20)]).logits == expected).all()


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        (lambda ids: Chunk((1,), ids[:2], 63), "chunk 0: positions 63 to 64 are outside its 1 pages of 64 tokens"),
        (lambda ids: Chunk((1,), ids[:2], -1), "chunk 0: positions -1 to 0 are outside"),
        (lambda ids: Chunk((), ids[:2], 0), "positions 0 to 1 are outside its 0 pages"),
        (lambda ids: Chunk((1,), np.array([3, 67]), 0), "token id 67 is outside the vocabulary, 0 to 66"),
        (lambda ids: Chunk((1,), np.array([-1, 3]), 0), "token id -1"),
        (lambda ids: Chunk((1,), np.array([], np.int64), 0), r"shape \(0,\)"),
        (lambda ids: Chunk((1,), ids[:2], 0, 3), "rows is 3; it must be 0 to 2"),
        (lambda ids: Chunk((2,), ids[:2], 0), r"pages are \(2,\); the cache has pages 0 to 1"),
        (lambda ids: Chunk((-1,), ids[:2], 0), r"pages are \(-1,\)"),
    ],
)
def test_a_batch_that_cannot_run_leaves_the_cache_unchanged(chunk, text):
    config = config_of()
    backend = native_backend(config, slots=2)
    ids = np.array([5, 9, 11, 2])
    backend.forward([Chunk((0,), ids[:3], 0)])
    with pytest.raises(RequestError, match=text):
        backend.forward([chunk(ids), Chunk((0,), ids[:2], 0)])
    repeated = backend.forward([Chunk((0,), ids[3:], 3)]).logits
    assert (repeated == run(native_backend(config), ids, [4])[3:]).all()


def test_two_chunks_cannot_write_to_the_same_page():
    backend = native_backend(config_of(max_position_embeddings=512))
    ids = np.arange(70) % 67
    with pytest.raises(RequestError, match="chunks 0 and 1 write to page 4; a page has one writer"):
        backend.forward([Chunk((1, 4), ids, 0), Chunk((4, 5), ids, 0)])


def test_an_unsupported_activation_is_an_error():
    with pytest.raises(BackendError, match="hidden_act 'gelu'"):
        check_supported(config_of(hidden_act="gelu"))


def test_a_missing_tensor_or_an_invalid_shape_is_an_error():
    config = config_of()
    state = pack_state("f32", random_state(config))
    incomplete = {name: weight for name, weight in state.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(BackendError, match=r"lacks mlp\.up_proj of layer 1"):
        NativeBackend(config, incomplete)
    state["model.layers.0.mlp.up_proj.weight"] = pack("f32", np.zeros((3, 4)), np.random.default_rng(0))
    with pytest.raises(BackendError, match=r"up_proj\.weight \(f32, shape \(3, 4\)\): its shape"):
        NativeBackend(config, state)


def test_unknown_kernels_are_an_error(monkeypatch):
    monkeypatch.setenv("PUNA_KERNELS", "mmx")
    config = config_of()
    with pytest.raises(BackendError, match="PUNA_KERNELS is 'mmx'"):
        native_backend(config)
