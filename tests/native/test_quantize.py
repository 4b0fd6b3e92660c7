"""Quantising rows: errors at most those of ggml, the same bytes for all thread counts and kernels, error messages."""

from __future__ import annotations

import numpy as np
import pytest

from puna.convert.mixes import MIXES
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS
from puna.native import machine
from puna.native.library import load_library
from puna.native.quantize import quantize
from tests.native import reference_quantize as reference

WRITABLE_FORMATS = [name for name, block in FORMATS.items() if block.values > 1 and name.lower() in MIXES]
SIMPLE_FORMATS = ["q4_0", "q4_1", "q5_0", "q5_1"]
ROWS, COLUMNS = 6, 768

SCALE_ROUNDING = 2.0**-21
"""Squared error, relative to the squared values, that rounding a scale and a minimum to float16 may add: (2^-11)^2
each. For constant values, or if one outlier dominates, this rounding is the only error."""


def sample_values(distribution: str, columns: int = COLUMNS) -> np.ndarray:
    """Returns random rows of a distribution."""
    random = np.random.default_rng(7)
    x = random.normal(0, 0.02, (ROWS, columns))
    if distribution == "heavy-tailed":
        x = random.standard_t(2.5, x.shape) * 0.02
    elif distribution == "all positive":
        x = np.abs(x) + 0.01
    elif distribution == "constant":
        x[:] = np.linspace(-0.9, 1.1, ROWS)[:, None]
    elif distribution == "all zero":
        x[:] = 0
    elif distribution == "one outlier":
        x[np.arange(ROWS), random.integers(0, columns, ROWS)] = random.uniform(2, 4, ROWS)
    elif distribution == "tiny":
        x *= 1e-5
    return x.astype(np.float32)


DISTRIBUTIONS = ["gaussian", "heavy-tailed", "all positive", "constant", "all zero", "one outlier", "tiny"]


def importance_of(columns: int = COLUMNS) -> np.ndarray:
    """Returns a random importance for each column."""
    return np.exp(np.random.default_rng(8).normal(0, 1.5, columns)).astype(np.float32)


def quantise_f32(x: np.ndarray, name: str, importance: np.ndarray | None = None, threads: int = 2) -> np.ndarray:
    return quantize(x.view(np.uint8), FORMATS["f32"], x.shape[1], FORMATS[name], importance, threads)


def decode(blocks: np.ndarray, name: str) -> np.ndarray:
    return FORMATS[name].decode(blocks.reshape(-1)).reshape(len(blocks), -1)


def squared_error(x: np.ndarray, values: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    return float((weights * (values.astype(np.float64) - x) ** 2).sum())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", SIMPLE_FORMATS)
def test_simple_formats_have_the_same_bytes_as_in_ggml(name, distribution):
    quants, gguf = pytest.importorskip("gguf.quants"), pytest.importorskip("gguf")
    x = sample_values(distribution, 736)  # 23 blocks; kernels quantise 16 at once, so the last group is not full
    assert (quantise_f32(x, name) == quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_error_of_q8_0_is_that_of_ggml(distribution):
    """The bytes may differ: values halfway between two levels may be rounded either way."""
    quants, gguf = pytest.importorskip("gguf.quants"), pytest.importorskip("gguf")
    x = sample_values(distribution, 736)
    packed, expected = quantise_f32(x, "q8_0"), quants.quantize(x, gguf.GGMLQuantizationType.Q8_0)
    assert (packed != expected).mean() < 1e-3
    assert squared_error(x, decode(packed, "q8_0")) <= 1.001 * squared_error(x, decode(expected, "q8_0"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", reference.FORMATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_at_most_those_of_the_search_in_ggml(name, distribution, weighted):
    x = sample_values(distribution)
    importance = importance_of() if weighted else None
    weights = reference.weights(name, x.astype(np.float64), importance)
    limit = squared_error(x, reference.round_like_ggml(name, x.astype(np.float64), weights, weighted), weights)
    measured = squared_error(x, decode(quantise_f32(x, name, importance), name), weights)
    assert measured <= 1.005 * limit + SCALE_ROUNDING * float((weights * x.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", WRITABLE_FORMATS)
def test_importance_lowers_the_weighted_error(name, distribution):
    x, importance = sample_values(distribution), importance_of()
    weights = importance.astype(np.float64) * np.ones(x.shape)
    plain, weighted = (
        squared_error(x, decode(quantise_f32(x, name, value), name), weights) for value in (None, importance)
    )
    assert weighted <= 1.05 * plain + SCALE_ROUNDING * float((weights * x.astype(np.float64) ** 2).sum())
    if distribution in ("gaussian", "all positive") and name != "q8_0":  # q8_0 ignores the importance
        assert weighted < 0.75 * plain


@pytest.mark.parametrize("name", WRITABLE_FORMATS)
def test_importance_may_have_any_scale_and_be_zero(name):
    """A power of two as a common factor cancels exactly; columns of importance 0 are still quantised."""
    x, importance = sample_values("gaussian"), importance_of()
    assert (quantise_f32(x, name, importance) == quantise_f32(x, name, importance * np.float32(2.0**80))).all()
    assert (
        quantise_f32(x, name, np.zeros(COLUMNS, np.float32)) == quantise_f32(x, name, np.ones(COLUMNS, np.float32))
    ).all()
    importance[:256] = 0
    values = decode(quantise_f32(x, name, importance), name)[:, :256]
    assert squared_error(x[:, :256], values) < 0.2 * squared_error(x[:, :256], np.zeros_like(values))


@pytest.mark.parametrize("name", WRITABLE_FORMATS)
@pytest.mark.parametrize("weighted", [False, True])
def test_results_are_bit_identical_for_all_thread_counts_and_kernels(name, weighted, monkeypatch):
    """Bytes do not depend on threads, kernels, other rows, or the float type that stores the same values."""
    x = np.concatenate([sample_values(distribution) for distribution in DISTRIBUTIONS])
    importance = importance_of() if weighted else None
    expected = quantise_f32(x, name, importance, 1)
    for kernels in machine().kernels:
        monkeypatch.setenv("PUNA_KERNELS", kernels)
        assert (quantise_f32(x, name, importance, 2) == expected).all()
        assert (quantise_f32(x[3:4], name, importance, 2) == expected[3:4]).all()
        f16 = x.astype(np.float16)
        blocks = quantize(f16.view(np.uint8), FORMATS["f16"], COLUMNS, FORMATS[name], importance, 2)
        assert (blocks == quantise_f32(f16.astype(np.float32), name, importance)).all()
        bf16 = (x.view(np.uint32) >> 16).astype(np.uint16)
        widened = (bf16.astype(np.uint32) << 16).view(np.float32)
        blocks = quantize(bf16.view(np.uint8), FORMATS["bf16"], COLUMNS, FORMATS[name], importance, 2)
        assert (blocks == quantise_f32(widened, name, importance)).all()


@pytest.mark.parametrize("name", WRITABLE_FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -3e37])
def test_values_that_no_format_can_hold_are_errors(name, value):
    x = sample_values("gaussian")
    x[4, 700] = value
    with pytest.raises(CheckpointError, match="not a finite number" if not np.isfinite(value) else "beyond"):
        quantise_f32(x, name)
    with pytest.raises(CheckpointError, match="f32 cannot be quantised to"):
        quantise_f32(x, name, importance_of())


def test_a_scale_beyond_float16_is_an_error():
    x = sample_values("gaussian")
    x[1, 5] = 9e7
    with pytest.raises(CheckpointError, match="scale beyond float16's 65504"):
        quantise_f32(x, "q8_0")


def test_inconsistent_arguments_are_errors():
    x, f32, q4 = sample_values("gaussian").view(np.uint8), FORMATS["f32"], FORMATS["q4_0"]
    for call, reason in (
        (
            lambda: quantize(x[:, :2944], f32, 736, FORMATS["q6_K"]),
            "rows of 736 values cannot be split into q6_K blocks of 256",
        ),
        (lambda: quantize(x, f32, 736, q4), "bytes for 6 rows of 736 f32 values"),
        (lambda: quantize(x[:0], f32, COLUMNS, q4), "is empty or too large, or its row length is not a multiple"),
        (lambda: quantize(x, f32, COLUMNS, q4, threads=-1), "threads is -1; it must be from 1 to 256"),
        (lambda: quantize(x, f32, COLUMNS, q4, importance_of(736)), r"importance has shape \(736,\)"),
        (
            lambda: quantize(quantise_f32(sample_values("gaussian"), "q8_0"), FORMATS["q8_0"], COLUMNS, q4),
            "quantising between these formats is not supported",
        ),
    ):
        with pytest.raises(CheckpointError, match=reason):
            call()


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_importance_must_be_finite_and_not_negative(value):
    importance = importance_of()
    importance[9] = value
    with pytest.raises(CheckpointError, match="an importance is negative or not a finite number"):
        quantise_f32(sample_values("gaussian"), "q4_K", importance)


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
    """All pointers are null: reading from any of them would crash."""
    arguments = {"format": 0, "rows": 1, "cols": 32, "to": 8, "threads": 1} | change
    library = load_library()
    kernels = machine().kernels[0].encode()
    numbers = [arguments[key] for key in ("format", "rows", "cols", "to")]
    assert library.puna_quantize(kernels, arguments["threads"], None, *numbers, None, None) == 1
    assert reason in library.puna_error()
