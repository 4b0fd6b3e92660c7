"""Compares unpacked GPTQ and AWQ matrices with values from AutoGPTQ's and AutoAWQ's code (make_grouped_golden.py)."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from puna.errors import CheckpointError
from puna.formats import parallel
from puna.formats.blocks import FORMATS, I32, StoredTensor
from puna.formats.grouped import PACKINGS, GroupedMatrix

GOLDEN = dict(np.load(Path(__file__).with_name("grouped_golden.npz")))
GROUP = 32

CASES = {
    "gptq_symmetric": (("gptq", "gptq"), "q4_0"),
    "gptq": (("gptq", "gptq"), "q4_1"),
    "gptq_act_order": (("gptq", "gptq"), "f16"),
    "awq": (("awq", "gemm"), "q4_1"),
}


def stored_tensor(array: np.ndarray) -> StoredTensor:
    form = {"int32": I32, "float16": FORMATS["f16"], "float32": FORMATS["f32"]}[array.dtype.name]
    return StoredTensor("t", array.shape, form, np.ascontiguousarray(array).view(np.uint8).reshape(-1))


def matrix(name: str, group_size: int = GROUP, **changes: np.ndarray | None) -> GroupedMatrix:
    """Returns a golden matrix as puna reads it, with some parts changed."""
    parts = {part: GOLDEN.get(f"{name}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")} | changes
    tensors = {part: None if array is None else stored_tensor(array) for part, array in parts.items()}
    return GroupedMatrix(name, PACKINGS[CASES[name][0]], group_size, **tensors)


def values(packed: GroupedMatrix) -> np.ndarray:
    """Returns the decoded values of a matrix."""
    return packed.format.decode(packed.data).reshape(packed.shape)


@pytest.mark.parametrize("name", CASES)
def test_values_equal_those_of_autogptq_and_autoawq(name: str) -> None:
    packed, expected = matrix(name), GOLDEN[f"{name}.values"]
    assert packed.format.name == CASES[name][1] and packed.shape == expected.shape
    if packed.format.name == "q4_0":
        assert np.array_equal(values(packed), expected)
    elif packed.format.name == "f16":
        assert np.array_equal(values(packed), expected.astype(np.float16).astype(np.float32))
    else:  # a minimum is up to 15 times a scale, and rounded to the eleven bits of float16
        scales = GOLDEN[f"{name}.scales"].astype(np.float32).T.repeat(GROUP, axis=1)
        assert (np.abs(values(packed) - expected) <= 15 * scales / 2**11).all()
        assert np.abs(expected).max() > 100 * (15 * scales / 2**11).min()
    order = np.random.default_rng(0).permutation(len(expected))[:19]
    assert np.array_equal(packed.take(order), packed.data.reshape(len(expected), -1)[order])


def test_gptq_v2_stores_zero_points_without_an_offset() -> None:
    zeros = GOLDEN["gptq.qzeros"].view(np.uint32) + np.uint32(0x11111111)
    old, parts = matrix("gptq"), {"qzeros": stored_tensor(zeros.view(np.int32)), "packing": PACKINGS["gptq", "gptq_v2"]}
    assert np.array_equal(values(dataclasses.replace(old, **parts)), values(old))


def test_groups_are_consecutive_without_g_idx_and_one_group_may_span_whole_rows() -> None:
    assert np.array_equal(matrix("gptq", g_idx=None).data, matrix("gptq").data)
    first = {part: GOLDEN[f"gptq.{part}"][:1] for part in ("qzeros", "scales")}
    single_group = matrix("gptq", group_size=-1, g_idx=None, **first)
    assert np.array_equal(values(single_group)[:, :GROUP], values(matrix("gptq"))[:, :GROUP])


def test_matrices_with_float32_scales_are_decoded_to_float32() -> None:
    scales = GOLDEN["gptq.scales"].astype(np.float32)
    packed = matrix("gptq", scales=scales)
    assert packed.format.name == "f32" and np.array_equal(values(packed), GOLDEN["gptq.values"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": GOLDEN["gptq.scales"][:, :8]}, "do not fit 32 outputs and 64 inputs in groups of 32"),
        ({"qzeros": GOLDEN["gptq.qzeros"][:1]}, "do not fit"),
        ({"group_size": 64}, "do not fit"),
        ({"scales": GOLDEN["gptq.qweight"]}, "is i32 of shape"),
        ({"qweight": GOLDEN["gptq.scales"]}, "is f16 of shape"),
        ({"g_idx": GOLDEN["gptq.g_idx"] + 1}, "must assign one of 2 groups to each of 64 inputs"),
        ({"g_idx": GOLDEN["gptq.g_idx"][:9]}, "must assign one of"),
    ],
)
def test_parts_of_inconsistent_shapes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        matrix("gptq", **changes)


@pytest.mark.parametrize("scale", [65000, np.inf, np.nan])
def test_scales_whose_products_are_not_finite_in_float16_are_refused(scale: float) -> None:
    with pytest.raises(CheckpointError, match="beyond float16"):
        _ = matrix("gptq", scales=np.full_like(GOLDEN["gptq.scales"], scale)).data


def test_rows_are_unpacked_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece of rows is unpacked once, and the bytes are those of a single thread."""
    expected = matrix("awq").data
    monkeypatch.setattr(parallel, "_processors", lambda: 3)
    monkeypatch.setattr(parallel, "VALUES_AT_ONCE", 1)
    numbers, threads, barrier = PACKINGS["awq", "gemm"].numbers, set(), threading.Barrier(3, timeout=30)

    def recording_numbers(words: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        if threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            barrier.wait()  # until three threads are unpacking
        return numbers(words, outputs)

    packed = dataclasses.replace(
        matrix("awq"), packing=dataclasses.replace(PACKINGS["awq", "gemm"], numbers=recording_numbers)
    )
    assert np.array_equal(packed.data, expected) and len(threads) == 3


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_processors", lambda: 3)
    with pytest.raises(CheckpointError, match="piece 5"):
        parallel.on_all_threads(_fail_from_five, range(20))


def _fail_from_five(piece: int) -> None:
    if piece >= 5:
        raise CheckpointError(f"piece {piece}")
