"""Logits are bit-identical in 1,000 random schedules of ragged batches and when each text runs alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from puna.backend import Chunk, page_count
from puna.native import NativeBackend, machine
from tests.helpers.configurations import config_of
from tests.helpers.native import pack_state, run
from tests.helpers.properties import FACTOR
from tests.helpers.random_weights import random_state
from tests.native.shapes import SHAPES

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 2, "vocab_size": 70}
CASES = [
    # shape, format, cache
    ({}, "f32", "f32"),
    (SHAPES["gqa2"], "f32", "f16"),
    (SHAPES["all_biases_tied"], "bf16", "bf16"),
    (SHAPES["odd_widths"], "f16", "q8_0"),
    (SHAPES["dynamic_mqa"], "f32", "f16"),
    (SHAPES["longrope_gqa4"], "f32", "q8_0"),
    ({"max_position_embeddings": 600}, "f32", "f16"),
    (WIDE, "q4_0", "f16"),
    (WIDE, "q4_1", "bf16"),
    (WIDE, "q5_0", "f16"),
    (WIDE, "q8_0", "q8_0"),
    (WIDE, "iq4_nl", "f16"),
    (WIDE, "q2_K", "f16"),
    (WIDE, "q4_K", "f32"),
    (WIDE, "q5_K", "f16"),
    (WIDE, "q6_K", "f16"),
    (WIDE, "iq4_xs", "f16"),
    (WIDE, "iq2_xs", "bf16"),
    (WIDE, "mxfp4", "f16"),
]
KERNELS = machine().kernels
SCHEDULES = -(-400 // (len(CASES) * len(KERNELS))) * FACTOR
"""Number of schedules for each case on each kernel build: at least 400 in all, and 4,000 in `make soak`. The program
`schedules` (csrc/tests) compares kernels in other schedules."""


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("shape", "name", "cache"), CASES)
def test_logits_are_bit_identical_in_random_schedules(shape, name, cache, kernels, monkeypatch):
    """Batches, chunk sizes, pages and thread counts are random; every row of logits equals that of the text alone."""
    monkeypatch.setenv("PUNA_KERNELS", kernels)
    config = config_of(**shape)
    tensors = pack_state(name, random_state(config))
    random = np.random.default_rng(7)
    backends = [NativeBackend(config, tensors, threads, slots=4, cache=cache) for threads in (1, 2, 3)]
    for number in range(SCHEDULES):
        longest = config.context_length if number % 4 == 0 else 64
        texts = [random.integers(0, config.vocab_size, random.integers(1, longest + 1)) for _ in range(4)]
        expected = [run(backends[0], text, [len(text)]) for text in texts]
        assert run_schedule(random, backends[number % 3], texts, expected) == sum(map(len, texts))


def run_schedule(
    random: np.random.Generator, backend: NativeBackend, texts: list, expected: list, adapters: Sequence[int] = ()
) -> int:
    """Runs the texts in random chunks, checks each row of logits, and returns the number of tokens that ran.

    Text i has the adapter adapters[i], or none if there are no adapters.
    """
    pages = random.permutation(sum(page_count(len(text)) for text in texts)).tolist()
    tables = [tuple(pages.pop() for _ in range(page_count(len(text)))) for text in texts]
    lengths = [0] * len(texts)
    while any(length < len(text) for length, text in zip(lengths, texts, strict=True)):
        batch, indices = [], []
        for index in random.permutation(len(texts)).tolist():
            unread = len(texts[index]) - lengths[index]
            if unread and random.random() < 0.8:
                size = int(random.integers(1, min(unread, random.choice([1, 8, 90])) + 1))
                tokens = texts[index][lengths[index] : lengths[index] + size]
                rows, adapter = int(random.integers(0, size + 1)), adapters[index] if adapters else 0
                batch.append(Chunk(tables[index], tokens, lengths[index], rows, adapter=adapter))
                indices.append(index)
        logits = backend.forward(batch).logits
        row = 0
        for index, chunk in zip(indices, batch, strict=True):
            lengths[index] += len(chunk.tokens)
            rows = expected[index][lengths[index] - chunk.rows : lengths[index]]
            assert (logits[row : row + chunk.rows] == rows).all()
            row += chunk.rows
    return sum(lengths)
