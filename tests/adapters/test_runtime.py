"""Changed embeddings as a backend uses them for single requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from puna.adapters import Adapter, LowRank
from puna.adapters.runtime import ChangedTensor
from puna.checkpoint.names import EMBEDDING
from puna.config import LlamaConfig
from puna.formats.blocks import FORMATS, StoredTensor


def test_the_bits_of_an_embedding_do_not_depend_on_the_other_tokens():
    """The products of each row cancel, so that the sums consist of rounding errors, which depend on their order."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((32, 96), (300, 32)))
    order = random.permutation(32)
    change = LowRank(np.concatenate([a, a[order]]), np.concatenate([b, -b[:, order]], 1), 1.0)
    tensor = changed_embedding(np.zeros((300, 96), np.float32), change)
    together = tensor.rows(range(300))
    assert together.any()
    for token in range(0, 300, 7):
        assert np.array_equal(tensor.rows([token]), together[token : token + 1])
    assert np.array_equal(tensor.rows([5, 9, 5]), together[[5, 9, 5]])


def changed_embedding(values, change):
    weight = StoredTensor(EMBEDDING, values.shape, FORMATS["f32"], values.view(np.uint8).reshape(-1))
    adapter = Adapter(Path("adapter"), "lora", LlamaConfig(), low_rank={EMBEDDING: change})
    return ChangedTensor(adapter, {EMBEDDING: weight}, EMBEDDING)
