"""What does not fit into memory is refused with the numbers; caches take what is left."""

from __future__ import annotations

import numpy as np
import pytest

from puna.backend import Chunk
from puna.errors import BackendError, RequestError
from puna.native import NativeBackend, memory
from puna.native.library import load_library
from puna.native.memory import available_memory
from tests.native.weights import model_in

pytest.importorskip("torch")

from tests.model.twins import config_of, pair

CONFIG = config_of(max_position_embeddings=512)


def tensors() -> dict:
    return model_in("f32", {key: value.detach().numpy() for key, value in pair(CONFIG)[0].state_dict().items()})


def test_memory_is_known_here():
    assert available_memory() is None or 1e8 < available_memory() < 1e15


def test_a_model_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    with pytest.raises(BackendError, match=r"takes 0\.00 GB packed, and 0\.00 GB of memory are available"):
        NativeBackend(CONFIG, tensors())


@pytest.mark.parametrize("shape", [(99, 16, 32), (2, 16, 33), (2, 0, 32), (2, 16, 0)])
def test_packed_bytes_of_what_is_no_matrix(shape):
    assert load_library().puna_packed_bytes(2, 16, 32) > 0
    assert load_library().puna_packed_bytes(*shape) == -1


def test_the_cache_takes_what_the_weights_leave(monkeypatch):
    full = NativeBackend(CONFIG, tensors(), slots=4)
    assert full.cache_tokens == 4 * 512
    page = full.cache_bytes_per_token * 64
    library = full._library
    weights = sum(
        library.puna_packed_bytes(tensor.format.ggml_id, *tensor.shape)
        for tensor in tensors().values()
        if len(tensor.shape) == 2
    )
    monkeypatch.setattr(memory, "available_memory", lambda: weights + page * 10)
    small = NativeBackend(CONFIG, tensors(), slots=4)
    assert small.cache_tokens == 9 * 64
    ids = np.arange(512) % 67
    small.forward([Chunk(0, ids, 0)])
    with pytest.raises(RequestError, match=r"needs 128 more tokens of cache, and 64 are free of 576"):
        small.forward([Chunk(1, ids[:128], 0)])
    small.forward([Chunk(1, ids[:64], 0)])
