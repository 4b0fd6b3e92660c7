"""Numbers that are out of range are errors of the C ABI, also where Python has checked them before."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from puna.config import Sampling
from puna.engine.sampling import Sampler, choose
from puna.native import NativeBackend
from puna.native.library import OK, NativeChunk, NativeLowRank, load_library
from puna.native.sampling import NativeRow, NativeSampling, SampleRow, choose_tokens
from tests.helpers.configurations import config_of
from tests.helpers.native import pack_state
from tests.helpers.random_weights import random_state

VOCAB = 40
HUGE = (2**31 - 1, -(2**31), -1)
NOT_NUMBERS = (math.nan, math.inf, -math.inf)


@pytest.fixture(scope="module")
def backend():
    config = config_of(vocab_size=VOCAB, max_position_embeddings=256)
    backend = NativeBackend(config, pack_state("f32", random_state(config)), 2, 2)
    yield backend
    backend.close()


def sample(backend, rows, count: int = 1, vocab: int = VOCAB) -> tuple[int, str]:
    """Calls both functions; returns their status and error."""
    library = load_library()
    first = library.puna_sample(b"portable", vocab, rows, count)
    message = library.puna_error().decode()
    assert library.puna_model_sample(backend.native_model, vocab, rows, count) == first
    assert library.puna_error().decode() == message
    return first, message


def new_row() -> SampleRow:
    """Returns a valid row, which owns the memory of its pointers."""
    logits = np.linspace(0, 1, VOCAB, dtype=np.float32)
    row = SampleRow(Sampling(0.7, logprobs=2, logit_bias={3: 1.0}, repetition_penalty=1.1))
    row.count((5, 6), generated=1)
    row.prepare(0.5, None)
    row._set("logits", logits)
    return row


def test_a_valid_row_is_chosen(backend):
    row = new_row()
    assert sample(backend, ctypes.byref(row.native))[0] == OK
    assert 0 <= row.native.token < VOCAB


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (-1.0, *NOT_NUMBERS)),
        ("top_k", (-1, -(2**63))),
        ("top_p", (-0.1, 1.1, *NOT_NUMBERS)),
        ("min_p", (-0.1, 1.1, *NOT_NUMBERS)),
        ("typical_p", (-0.1, 1.1, *NOT_NUMBERS)),
        ("repetition_penalty", (0.0, -1.0, *NOT_NUMBERS)),
        ("presence_penalty", NOT_NUMBERS),
        ("frequency_penalty", NOT_NUMBERS),
    ],
)
def test_options_out_of_range_are_errors(backend, name, values):
    assert {field for field, *_ in NativeSampling._fields_} >= {name}
    for value in values:
        row = new_row()
        setattr(row._options, name, value)
        status, message = sample(backend, ctypes.byref(row.native))
        assert (status != OK, message) == (True, "a sampling option is out of range"), value


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("uniform", (1.0, -0.1, *NOT_NUMBERS)),
        ("top_count", (VOCAB + 1, 2**31 - 1, -2, -(2**31))),
        ("given", (VOCAB, 2**31 - 1, -2, -(2**31))),
        ("seen_count", (-1, -(2**31))),
        ("bias_count", (-1, -(2**31))),
        ("logits", (None,)),
        ("options", (None,)),
        ("top_ids", (None,)),
        ("top_logprobs", (None,)),
        ("seen", (None,)),
        ("generated", (None,)),
        ("bias_ids", (None,)),
        ("bias", (None,)),
    ],
)
def test_numbers_of_a_row_out_of_range_are_errors(backend, name, values):
    for value in values:
        row = new_row()
        setattr(row.native, name, value)
        row.native.token = -7
        assert sample(backend, ctypes.byref(row.native))[0] != OK, value
        assert row.native.token == -7


@pytest.mark.parametrize("name", ["seen", "generated", "bias_ids", "bias"])
def test_arrays_of_a_row_are_checked(backend, name):
    for value in HUGE if name != "bias" else NOT_NUMBERS:
        row = new_row()
        row._arrays[name][0] = value
        failed = sample(backend, ctypes.byref(row.native))[0] != OK
        assert failed or (name, value) == ("generated", 2**31 - 1)  # a possible count


def test_an_invalid_row_changes_no_row(backend):
    valid, invalid = new_row(), new_row()
    invalid.native.given = VOCAB
    rows = (NativeRow * 2)(valid.native, invalid.native)
    rows[0].token = -7
    assert sample(backend, rows, 2)[0] != OK
    assert rows[0].token == -7
    for count, vocab in ((-1, VOCAB), (-(2**31), VOCAB), (1, 0), (1, -5), (1, 2**31), (1, 2**62)):
        assert sample(backend, rows, count, vocab)[0] != OK
    assert sample(backend, rows, 0)[0] == OK


def forward(backend, **changes) -> int:
    """Runs a chunk of two tokens with some fields changed; returns the status."""
    tokens, pages = np.array([1, 2], np.int32), np.array([0], np.int32)
    fields = {"tokens": tokens.tobytes(), "pages": pages.tobytes(), "inv_freq": bytes(256), "rope_scale": 1.0}
    fields |= {"count": 2, "page_count": 1, "start": 0, "rows": 1, "output": 0, "adapter": 0}
    count = changes.pop("chunks", 1)
    chunk = NativeChunk(**{**fields, **changes})
    logits, hidden = np.zeros((2, VOCAB), np.float32), np.zeros((2, 64), np.float32)
    return load_library().puna_forward(
        backend.native_model, ctypes.byref(chunk), count, 0, logits.ctypes.data, hidden.ctypes.data
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("count", (0, *HUGE)),
        ("page_count", (0, -1, -(2**31))),
        ("start", (63, 2**31 - 1, -1, -(2**31))),
        ("rows", (3, *HUGE)),
        ("output", (2, *HUGE)),
        ("adapter", (1, *HUGE)),
        ("tokens", (np.array([1, VOCAB], np.int32).tobytes(), np.array([-1, 1], np.int32).tobytes(), None)),
        ("pages", (np.array([10**6], np.int32).tobytes(), np.array([-1], np.int32).tobytes(), None)),
        ("inv_freq", (None,)),
        ("rope_scale", NOT_NUMBERS),
        ("chunks", (0, -1, -(2**31))),
    ],
)
def test_numbers_of_a_chunk_out_of_range_are_errors(backend, name, values):
    assert forward(backend) == OK
    for value in values:
        assert forward(backend, **{name: value}) != OK, value
    assert forward(backend) == OK


def test_numbers_of_pages_and_adapters_out_of_range_are_errors(backend):
    library, model = load_library(), backend.native_model
    assert forward(backend) == OK  # page 0 exists
    data, number = np.zeros(backend.page_bytes * 2, np.uint8), ctypes.c_int32()
    keys = np.zeros((8, 64, 64), np.float32)
    for page in (*HUGE, backend.pages):
        numbers = np.array([page], np.int32).tobytes()
        assert library.puna_pages_read(model, numbers, 1, data.ctypes.data) != OK
        assert library.puna_pages_write(model, numbers, 1, data.ctypes.data) != OK
        assert library.puna_pages_fill(model, numbers, 1, 1, keys.ctypes.data, keys.ctypes.data) != OK
    zero = np.array([0], np.int32).tobytes()
    for count in (-1, -(2**31)):
        assert library.puna_pages_read(model, zero, count, data.ctypes.data) != OK
        assert library.puna_pages_write(model, zero, count, data.ctypes.data) != OK
        assert library.puna_pages_fill(model, zero, count, 0, keys.ctypes.data, keys.ctypes.data) != OK
        assert library.puna_adapter_load(model, None, count, ctypes.byref(number)) != OK
    for tokens in (65, *HUGE):
        assert library.puna_pages_fill(model, zero, 1, tokens, keys.ctypes.data, keys.ctypes.data) != OK
    for name, values in (("kind", (99, *HUGE)), ("layer", (99, *HUGE)), ("rank", HUGE)):
        for value in values:
            change = NativeLowRank(**{"kind": 4, "layer": 0, "rank": 0, name: value})
            assert library.puna_adapter_load(model, ctypes.byref(change), 1, ctypes.byref(number)) != OK, (name, value)
    for value in (0, 7, *HUGE):
        assert library.puna_adapter_drop(model, value) != OK


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logprobs=5),
        Sampling(0.8, top_k=9, logprobs=0),
        Sampling(1.2, top_p=0.9, min_p=0.01, repetition_penalty=1.3, logit_bias={1: 5.0, 7: -3.0}),
        Sampling(0.9, typical_p=0.8, presence_penalty=1.0, frequency_penalty=0.3),
        Sampling(0.7, allowed_token_ids=tuple(range(0, 3000, 3))),
    ],
)
def test_choices_do_not_depend_on_the_threads(sampling):
    vocab, config = 3000, config_of(vocab_size=VOCAB)
    random = np.random.default_rng(3)
    logits = random.standard_normal((40, vocab)).astype(np.float32) * 4
    logits[7, 5] = np.nan
    results = []
    backends = [NativeBackend(config, pack_state("f32", random_state(config)), threads) for threads in (1, 2, 4)]
    for model in (None, *(backend.native_model for backend in backends)):
        samplers = [Sampler(sampling, (4, 5, number), vocab, candidate=number) for number in range(40)]
        for sampler in samplers:
            sampler._uniform = None if sampling.temperature == 0 else 0.37
        results.append([str(choice) for choice in choose(samplers, logits, range(40), model)])
    assert results[1:] == [results[0]] * 3
    assert sum("not finite" in text for text in results[0]) == 1
    assert choose_tokens(logits, [], backends[0].native_model) == []
    for backend in backends:
        backend.close()
