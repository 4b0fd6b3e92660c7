"""Quantising rows: errors no larger than ggml's, the same bits everywhere, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest

from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS
from puna.native import machine
from puna.native.library import load_library
from puna.native.quantize import quantize
from tests.native import quantize_twins as twins

BLOCKS = [name for name, block in FORMATS.items() if block.values > 1]
SIMPLE = ["q4_0", "q4_1", "q5_0", "q5_1"]
ROWS, COLUMNS = 6, 768

HALVES = 2.0**-21
"""What float16's rounding of a scale and of a minimum may add to the squared error, relative to the values' squares:
(2^-11)^2 each. It is all there is where values are constant or one outlier outweighs the others."""


def sample(kind: str, columns: int = COLUMNS) -> np.ndarray:
    random = np.random.default_rng(7)
    x = random.normal(0, 0.02, (ROWS, columns))
    if kind == "heavy-tailed":
        x = random.standard_t(2.5, x.shape) * 0.02
    elif kind == "all positive":
        x = np.abs(x) + 0.01
    elif kind == "constant":
        x[:] = np.linspace(-0.9, 1.1, ROWS)[:, None]
    elif kind == "all zero":
        x[:] = 0
    elif kind == "one outlier":
        x[np.arange(ROWS), random.integers(0, columns, ROWS)] = random.uniform(2, 4, ROWS)
    elif kind == "tiny":
        x *= 1e-5
    return x.astype(np.float32)


KINDS = ["gaussian", "heavy-tailed", "all positive", "constant", "all zero", "one outlier", "tiny"]


def importance_of(columns: int = COLUMNS) -> np.ndarray:
    return np.exp(np.random.default_rng(8).normal(0, 1.5, columns)).astype(np.float32)


def run(x: np.ndarray, name: str, importance: np.ndarray | None = None, threads: int = 2) -> np.ndarray:
    return quantize(x.view(np.uint8), FORMATS["f32"], x.shape[1], FORMATS[name], importance, threads)


def decoded(blocks: np.ndarray, name: str) -> np.ndarray:
    return FORMATS[name].decode(blocks.reshape(-1)).reshape(len(blocks), -1)


def error(x: np.ndarray, found: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    return float((weights * (found.astype(np.float64) - x) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIMPLE)
def test_simple_formats_are_ggml_s_own_bytes(name, kind):
    quants, gguf = pytest.importorskip("gguf.quants"), pytest.importorskip("gguf")
    x = sample(kind, 736)  # a last group of blocks that is not full
    assert (run(x, name) == quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_q8_0_is_as_near_as_ggml_s(kind):
    """Not the same bytes: values halfway between two levels may go either way."""
    quants, gguf = pytest.importorskip("gguf.quants"), pytest.importorskip("gguf")
    x = sample(kind, 736)
    ours, theirs = run(x, "q8_0"), quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    assert (ours != theirs).mean() < 1e-3
    assert error(x, decoded(ours, "q8_0")) <= 1.001 * error(x, decoded(theirs, "q8_0"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", twins.KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_searches_are_as_careful_as_ggml_s(name, kind, weighted):
    x = sample(kind)
    importance = importance_of() if weighted else None
    weights = twins.weights(name, x.astype(np.float64), importance)
    limit = error(x, twins.rounded(name, x.astype(np.float64), weights, weighted), weights)
    found = error(x, decoded(run(x, name, importance), name), weights)
    assert found <= 1.005 * limit + HALVES * float((weights * x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_importance_lowers_the_error_it_weighs(name, kind):
    x, importance = sample(kind), importance_of()
    weights = importance.astype(np.float64) * np.ones(x.shape)
    plain, weighted = (error(x, decoded(run(x, name, given), name), weights) for given in (None, importance))
    assert weighted <= 1.05 * plain + HALVES * float((weights * x.astype(np.float64) ** 2).sum())
    if kind in ("gaussian", "all positive") and name != "q8_0":  # which weighs nothing
        assert weighted < 0.75 * plain


@pytest.mark.parametrize("name", BLOCKS)
def test_importance_in_any_unit_and_zeros(name):
    """A unit that is a power of two cancels exactly; columns that do not matter are rounded all the same."""
    x, importance = sample("gaussian"), importance_of()
    assert (run(x, name, importance) == run(x, name, importance * np.float32(2.0**80))).all()
    assert (run(x, name, np.zeros(COLUMNS, np.float32)) == run(x, name, np.ones(COLUMNS, np.float32))).all()
    importance[:256] = 0
    found = decoded(run(x, name, importance), name)[:, :256]
    assert error(x[:, :256], found) < 0.2 * error(x[:, :256], np.zeros_like(found))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_everywhere(name, weighted, monkeypatch):
    """For any threads and instruction set, and for a row alone; f16 and bf16 sources as the floats they stand for."""
    x = np.concatenate([sample(kind) for kind in KINDS])
    importance = importance_of() if weighted else None
    wanted = run(x, name, importance, 1)
    for kernels in machine().kernels:
        monkeypatch.setenv("PUNA_KERNELS", kernels)
        assert (run(x, name, importance, 2) == wanted).all()
        assert (run(x[3:4], name, importance, 2) == wanted[3:4]).all()
        halves = x.astype(np.float16)
        found = quantize(halves.view(np.uint8), FORMATS["f16"], COLUMNS, FORMATS[name], importance, 2)
        assert (found == run(halves.astype(np.float32), name, importance)).all()
        brains = (x.view(np.uint32) >> 16).astype(np.uint16)
        widened = (brains.astype(np.uint32) << 16).view(np.float32)
        found = quantize(brains.view(np.uint8), FORMATS["bf16"], COLUMNS, FORMATS[name], importance, 2)
        assert (found == run(widened, name, importance)).all()


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -3e37])
def test_values_that_no_format_holds_are_refused(name, value):
    x = sample("gaussian")
    x[4, 700] = value
    with pytest.raises(CheckpointError, match="not a finite number" if not np.isfinite(value) else "beyond"):
        run(x, name)
    with pytest.raises(CheckpointError, match="f32 cannot be quantised to"):
        run(x, name, importance_of())


def test_a_scale_beyond_float16_is_refused():
    x = sample("gaussian")
    x[1, 5] = 9e7
    with pytest.raises(CheckpointError, match="scale beyond float16's 65504"):
        run(x, "q8_0")


def test_arguments_that_do_not_fit_are_refused():
    x, f32, q4 = sample("gaussian").view(np.uint8), FORMATS["f32"], FORMATS["q4_0"]
    for call, reason in (
        (
            lambda: quantize(x[:, :2944], f32, 736, FORMATS["q6_K"]),
            "rows of 736 values cannot be packed as q6_K, in blocks of 256",
        ),
        (lambda: quantize(x, f32, 736, q4), "bytes for 6 rows of 736 f32 values"),
        (lambda: quantize(x[:0], f32, COLUMNS, q4), "is empty or too large, or its row length is not a multiple"),
        (lambda: quantize(x, f32, COLUMNS, q4, threads=-1), "threads is -1; it must be from 1 to 1024"),
        (lambda: quantize(x, f32, COLUMNS, q4, importance_of(736)), r"importance of shape \(736,\)"),
        (
            lambda: quantize(run(sample("gaussian"), "q8_0"), FORMATS["q8_0"], COLUMNS, q4),
            "quantising between these formats is not supported",
        ),
    ):
        with pytest.raises(CheckpointError, match=reason):
            call()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_importance_is_finite_and_not_negative(value):
    importance = importance_of()
    importance[9] = value
    with pytest.raises(CheckpointError, match="an importance is negative or not a finite number"):
        run(sample("gaussian"), "q4_K", importance)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 99}, b"quantising between these formats is not supported"),
        ({"format": 2}, b"quantising between these formats is not supported"),
        ({"to": 0}, b"quantising between these formats is not supported"),
        ({"rows": 0}, b"is empty or too large, or its row length is not a multiple"),
        ({"rows": 2**62}, b"is empty or too large, or its row length is not a multiple"),
        ({"cols": -32}, b"is empty or too large, or its row length is not a multiple"),
        ({"cols": 33}, b"is empty or too large, or its row length is not a multiple"),
        ({"threads": 0}, b"threads"),
    ],
)
def test_the_library_checks_sizes_before_it_reads(change, reason):
    """No pointer is followed: all are null."""
    given = {"format": 0, "rows": 1, "cols": 32, "to": 8, "threads": 1} | change
    library = load_library()
    kernels = machine().kernels[0].encode()
    numbers = [given[key] for key in ("format", "rows", "cols", "to")]
    assert library.puna_quantize(kernels, given["threads"], None, *numbers, None, None) == 1
    assert reason in library.puna_error()
