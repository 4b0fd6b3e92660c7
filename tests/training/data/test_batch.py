"""Batches without padding, and the order of examples as a pure function."""

from __future__ import annotations

import numpy as np
import pytest

from puna.training.batch import Batch, Example, Source, derived_seed, order


def example(ids, weights=None, label=None, row=1):
    weights = [0] + [1] * (len(ids) - 1) if weights is None else weights
    return Example(np.array(ids, np.int32), np.array(weights, np.float32), label, Source("a.jsonl", row))


def test_a_batch_is_a_list_of_documents():
    batch = Batch.of([example([1, 2, 3]), example([4, 5], [0, 0.25], row=9)], seed=7)
    assert batch.ids.tolist() == [1, 2, 3, 4, 5] and batch.ids.dtype == np.int64
    assert batch.lengths == (3, 2) and batch.tokens == 5
    assert batch.weights.tolist() == [0, 1, 1, 0, 0.25] and batch.total_weight == 2.25
    assert batch.labels is None and batch.seeds == (derived_seed(7, 0), derived_seed(7, 1))
    assert [str(source) for source in batch.sources] == ["a.jsonl, line 1", "a.jsonl, line 9"]


@pytest.mark.parametrize(
    ("labels", "dtype", "shape"),
    [
        ((0, 2), np.int64, (2,)),
        ((0.5, -1.0), np.float32, (2,)),
        (((0.0, 1.0, 1.0), (1.0, 0.0, 0.0)), np.float32, (2, 3)),
    ],
)
def test_labels_keep_their_type(labels, dtype, shape):
    batch = Batch.of([example([1, 2], [0, 0], label) for label in labels], seed=0)
    assert batch.labels.dtype == dtype and batch.labels.shape == shape
    assert np.array_equal(batch.labels, np.array(labels, dtype))
    assert batch.total_weight == 2


def test_the_order_of_an_epoch_is_a_recorded_permutation():
    """The values of Philox4x64-10 with key (3, 0) are those of NumPy 2.4.6; resumed runs need them."""
    assert order(3, 0, 8).tolist() == [6, 1, 5, 2, 7, 4, 3, 0]
    assert sorted(order(3, 1, 1000)) == list(range(1000))
    assert not np.array_equal(order(3, 1, 1000), order(3, 2, 1000))
    assert not np.array_equal(order(3, 1, 1000), order(4, 1, 1000))
    assert order(-1, 0, 5).shape == (5,) and order(0, 0, 0).shape == (0,)


def test_the_order_is_uniform():
    firsts = np.bincount([order(seed, 0, 8)[0] for seed in range(4000)], minlength=8)
    assert ((firsts - 500) ** 2 / 500).sum() < 24.3, "chi-squared with 7 degrees of freedom, one in a thousand"


def test_derived_seeds_equal_the_published_generator():
    """SplitMix64 with state 0 returns 0xE220A8397B1DCDAF first (Vigna's splitmix64.c, as in many test suites)."""
    assert derived_seed(0) == 0xE220A8397B1DCDAF >> 1
    seeds = {derived_seed(1, step, micro) for step in range(100) for micro in range(100)}
    assert len(seeds) == 10_000 and max(seeds) < 2**63
    assert derived_seed(1, 2, 3) != derived_seed(1, 3, 2)
