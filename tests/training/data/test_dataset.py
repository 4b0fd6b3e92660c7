"""Stored examples are returned unchanged, also from a file; packing is compared with the best possible packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from puna.training.batch import Example, Source
from puna.training.data.dataset import DatasetWriter, Subset
from puna.training.data.packing import pack


def random_examples(count, seed=0):
    draw = np.random.default_rng(seed)
    for index in range(count):
        length = int(draw.integers(1, 40))
        weights = np.repeat(draw.choice([0, 1, 0.25], length), draw.integers(1, 3, length))[:length].astype(np.float32)
        label = (None, index, 0.5, (1.0, 0.0))[index % 4]
        ids = draw.integers(0, 2**31 - 1, length).astype(np.int32)
        yield Example(ids, weights, label, Source(f"{index % 3}.jsonl", index + 1, ("line", "row")[index % 2]))


def store(examples):
    writer = DatasetWriter()
    for example in examples:
        writer.add(example)
    return writer.finish()


@pytest.mark.parametrize("limit", [2**26, 100])
def test_examples_are_returned_unchanged(limit, monkeypatch):
    monkeypatch.setattr("puna.training.data.dataset._IN_MEMORY", limit)
    expected = list(random_examples(50))
    data = store(expected)
    assert len(data) == 50 and data._store._file._rolled is (limit == 100)
    for index in [*range(50), 3, -1]:
        example = data[index]
        assert np.array_equal(example.ids, expected[index].ids) and example.ids.dtype == np.int32
        assert np.array_equal(example.weights, expected[index].weights) and example.weights.dtype == np.float32
        assert (example.label, example.source) == (expected[index].label, expected[index].source)
    assert data.lengths.tolist() == [len(example.ids) for example in expected]
    assert data.total_weights.tolist() == [float(example.weights.astype(float).sum()) for example in expected]
    with pytest.raises(IndexError):
        data[50]


def test_the_digest_depends_on_everything_but_the_source():
    examples = list(random_examples(3))
    base = store(examples).digest()
    first = examples[0]
    assert store([Example(first.ids, first.weights, first.label, Source("b", 1)), *examples[1:]]).digest() == base
    for changed in (
        Example(first.ids + 1, first.weights, first.label, first.source),
        Example(first.ids, first.weights + 1, first.label, first.source),
        Example(first.ids, first.weights, 7, first.source),
    ):
        assert store([changed, *examples[1:]]).digest() != base
    assert store(examples[::-1]).digest() != base and len(base) == 64


def test_a_subset_has_its_own_digest():
    data = store(random_examples(10))
    subset = Subset(data, [7, 2])
    assert len(subset) == 2 and subset[0].source.row == 8 and subset.lengths.tolist() == data.lengths[[7, 2]].tolist()
    assert subset.digest() != Subset(data, [2, 7]).digest() != data.digest()


def least_groups(lengths, limit):
    """Returns the smallest number of groups, by trying all assignments."""
    best = len(lengths)
    for choice in itertools.product(range(len(lengths)), repeat=len(lengths)):
        sums = np.bincount(choice, weights=lengths)
        if sums.max() <= limit:
            best = min(best, int((sums > 0).sum()))
    return best


def test_packing_is_near_the_best():
    draw = np.random.default_rng(0)
    for _ in range(40):
        lengths = draw.integers(1, 11, 5).tolist()
        groups = pack(lengths, 10)
        assert sorted(itertools.chain(*groups)) == list(range(5))
        assert all(sum(lengths[index] for index in group) <= 10 for group in groups)
        assert len(groups) <= 11 / 9 * least_groups(lengths, 10) + 6 / 9


def test_packing_of_many_documents():
    lengths = np.random.default_rng(1).integers(1, 1500, 5000)
    groups = pack(lengths, 1024)
    sums = [int(lengths[group].sum()) for group in groups]
    assert sorted(itertools.chain(*groups)) == list(range(5000))
    assert all(total <= 1024 or len(group) == 1 for total, group in zip(sums, groups, strict=True))
    fitting = lengths[lengths <= 1024]
    assert len([total for total in sums if total <= 1024]) <= 1.02 * fitting.sum() / 1024 + 1
    assert pack(lengths, 1024) == groups
    assert [pack([5, 5, 5], 10), pack([3, 7, 6, 4], 10), pack([], 8)] == [[[0, 1], [2]], [[0, 1], [2, 3]], []]
