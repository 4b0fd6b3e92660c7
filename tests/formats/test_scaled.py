"""Compares matrices of compressed-tensors and bitsandbytes with values that these libraries computed.

The program make_scaled_golden.py writes the values.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.checkpoint.bitsandbytes import join_bitsandbytes
from puna.checkpoint.compressed import join_compressed
from puna.checkpoint.quantization import Settings
from puna.errors import CheckpointError
from puna.formats.blocks import F8, FORMATS, I8, I32, I64, U8, StoredTensor
from puna.formats.scaled import ScaledMatrix
from tests.helpers.tiny_checkpoints import tiny_config

GOLDEN = dict(np.load(Path(__file__).with_name("scaled_golden.npz")))
FORMS = {
    "int8": I8, "uint8": U8, "int16": FORMATS["bf16"], "int32": I32, "int64": I64, "float16": FORMATS["f16"],
    "float32": FORMATS["f32"],
}  # fmt: skip
COMPRESSED = {
    "int4_group": "int4",
    "int4_group_asymmetric": "int4",
    "int4_channel_asymmetric": "int4",
    "int4_act_order": "int4",
    "int8_tensor": "int8",
    "int8_group_asymmetric": "int8",
    "naive_int8_channel": "int8",
    "naive_int8_tensor_asymmetric": "int8",
    "naive_int8_group": "int8",
    "float8_channel": "float8",
    "float8_tensor": "float8",
    "float8_block": "float8",
}
BITSANDBYTES = {"int8": "int8", "nf4": "nf4", "nf4_nested": "nf4", "nf4_odd": "nf4", "nf4_storage": "nf4", "fp4": "fp4"}

BLOCKS = {"config_groups": {"group_0": {"weights": {"num_bits": 8, "block_structure": [8, 32]}}}}


def stored_tensor(name: str, array: np.ndarray, form: Any = None) -> StoredTensor:
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return StoredTensor(name, array.shape, form or FORMS[array.dtype.name], raw)


def parts_of(case: str, **changes: np.ndarray | None) -> dict[str, StoredTensor]:
    """Returns the golden tensors of a matrix called "m"."""
    arrays = {key.partition(".")[2]: array for key, array in GOLDEN.items() if key.startswith(f"{case}.")}
    arrays = {key: array for key, array in (arrays | changes).items() if array is not None and key != "values"}
    return {
        f"m.{key}": stored_tensor(f"m.{key}", array, F8 if case.startswith("float8") and key == "weight" else None)
        for key, array in arrays.items()
    }


def compressed(case: str, settings: dict[str, Any] = BLOCKS, **changes: np.ndarray | None) -> ScaledMatrix:
    """Returns the golden matrix that puna reads from its compressed-tensors parts."""
    joined, _ = join_compressed(parts_of(case, **changes), Settings(settings, ""), tiny_config())
    assert list(joined) == ["m.weight"]
    assert isinstance(joined["m.weight"], ScaledMatrix)
    return joined["m.weight"]


def bitsandbytes(case: str, **changes: np.ndarray | None) -> ScaledMatrix:
    """Returns the golden matrix that puna reads from its bitsandbytes parts."""
    joined, _ = join_bitsandbytes(parts_of(case, **changes), Settings({}, ""), tiny_config())
    assert list(joined) == ["m.weight"]
    assert isinstance(joined["m.weight"], ScaledMatrix)
    return joined["m.weight"]


def check_values(matrix: ScaledMatrix, expected: np.ndarray) -> None:
    """Asserts that a matrix has the expected values and type, also for rows in another order."""
    assert matrix.shape == expected.shape and matrix.format == FORMS[expected.dtype.name]
    rows = expected.view(np.uint8).reshape(len(expected), -1)
    assert np.array_equal(matrix.data.reshape(len(expected), -1), rows)
    order = np.random.default_rng(0).permutation(len(expected))[:5]
    assert np.array_equal(matrix.take(order), rows[order])
    assert np.unique(expected).size > 20, "the expected matrix has too few different values to detect errors"


@pytest.mark.parametrize("case", COMPRESSED)
def test_values_equal_those_of_compressed_tensors(case: str) -> None:
    matrix = compressed(case)
    assert matrix.method == f"compressed-tensors {COMPRESSED[case]}"
    check_values(matrix, GOLDEN[f"{case}.values"])


@pytest.mark.parametrize("case", BITSANDBYTES)
def test_values_equal_those_of_bitsandbytes(case: str) -> None:
    matrix = bitsandbytes(case)
    assert matrix.method == f"bitsandbytes {BITSANDBYTES[case]}"
    check_values(matrix, GOLDEN[f"{case}.values"])


def test_rows_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.formats.parallel.VALUES_AT_ONCE", 200)
    for matrix, case in ((compressed("int4_group"), "int4_group"), (bitsandbytes("nf4_odd"), "nf4_odd")):
        check_values(matrix, GOLDEN[f"{case}.values"])


def test_every_value_of_float8_is_read() -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(F8.decode(codes), expected, equal_nan=True) and expected[126] == 448


def test_a_group_index_of_minus_one_means_consecutive_groups() -> None:
    groups = np.full(96, -1, np.int32)
    assert np.array_equal(compressed("int4_group", weight_g_idx=groups).data, compressed("int4_group").data)


def test_the_number_of_inputs_need_not_be_a_multiple_of_eight() -> None:
    """Rows of 4-bit codes are padded to entire words of 32 bits."""
    packed, scale = GOLDEN["int4_channel_asymmetric.weight_packed"], GOLDEN["int4_channel_asymmetric.weight_scale"]
    shape = np.array([24, 90])
    changes = {"weight_packed": packed, "weight_shape": shape, "weight_scale": scale}
    expected = GOLDEN["int4_channel_asymmetric.values"][:, :90]
    matrix = compressed("int4_channel_asymmetric", **changes)
    assert np.array_equal(matrix.data, np.ascontiguousarray(expected).view(np.uint8).reshape(-1))


def test_scales_of_activations_are_dropped_with_a_note() -> None:
    no_settings = Settings({}, "")
    settings = {"config_groups": {"group_0": {"weights": {}, "input_activations": {"num_bits": 8}}}}
    tensors = parts_of("naive_int8_channel") | {
        f"m.{name}": stored_tensor(f"m.{name}", np.ones(1, np.float32)) for name in ("input_scale", "k_scale")
    }
    joined, notes = join_compressed(
        tensors, Settings(settings | {"kv_cache_scheme": {"num_bits": 8}}, ""), tiny_config()
    )
    assert list(joined) == ["m.weight"]
    assert notes == [
        "puna quantises neither activations nor the cache as compressed-tensors does (input_activations, "
        "kv_cache_scheme)"
    ]
    assert join_bitsandbytes(parts_of("int8"), no_settings, tiny_config())[1] == [
        "puna does not quantise activations as bitsandbytes does (LLM.int8())"
    ]
    assert join_compressed(parts_of("int4_group"), no_settings, tiny_config())[1] == []
    assert join_bitsandbytes(parts_of("nf4"), no_settings, tiny_config())[1] == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "nvfp4-pack-quantized"}, r"format 'nvfp4-pack-quantized'; puna reads pack-quantized, int-.*GGUF"),
        ({"config_groups": {"a": {"format": "marlin-24"}}}, "format 'marlin-24'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparse .*sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ({"config_groups": {"a": {"weights": {"num_bits": 3}}}}, "quantised to 3 bits with compressed-tensors"),
    ],
)
def test_unsupported_features_of_compressed_tensors_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        compressed("int4_group", settings)
    assert compressed("int4_group", {"sparsity_config": {"format": "dense"}, "transform_config": {"config_groups": {}}})


HALF = np.ones((24, 96), np.float16)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("int4_group", {"weight_scale": np.ones((24, 5), np.float16)}, r"shape \(24, 5\), which does not divide"),
        ("int4_group", {"weight_scale": np.ones((24, 3), np.int8)}, "scales must be f32, f16 or bf16"),
        ("int4_group", {"weight_scale": None}, "lacks its scales"),
        ("int4_group", {"weight_packed": None}, "lacks its codes"),
        ("int4_group", {"weight_shape": None}, "lacks weight_shape"),
        ("int4_group", {"weight_shape": np.array([24, 120])}, "12 words of 32 bits for 120 inputs"),
        ("int4_group", {"weight_shape": np.array([20, 96])}, r"weight_shape is \(20, 96\)"),
        ("int4_act_order", {"weight_g_idx": np.full(96, 3, np.int32)}, "does not divide"),
        ("int4_act_order", {"weight_g_idx": np.zeros(95, np.int32)}, "for each of 96 inputs"),
        ("int4_act_order", {"weight_zero_point": np.zeros((24, 2), np.int8)}, "does not fit scales"),
        ("naive_int8_channel", {"weight": HALF}, "before it was compressed"),
        ("naive_int8_channel", {"weight_scale": np.full((24, 1), 6e4, np.float16)}, "beyond float16's range"),
    ],
)
def test_missing_and_inconsistent_parts_are_refused(case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        assert compressed(case, **changes).data is not None


def state(**changes: Any) -> np.ndarray:
    """Returns the quantisation state of a matrix as bitsandbytes stores it: the bytes of a JSON object."""
    fields = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [24, 128]} | changes
    return np.frombuffer(json.dumps(fields).encode(), np.uint8)


KEY = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("nf4", {KEY: np.frombuffer(b"{", np.uint8)}, "is not JSON"),
        ("nf4", {KEY: np.frombuffer(b"[]", np.uint8)}, "must be a JSON object"),
        ("nf4", {KEY: state(blocksize=0)}, "blocksize is 0; expected an integer of at least 1"),
        ("nf4", {KEY: state(dtype="float64")}, "dtype is 'float64'; expected float32, float16, bfloat16"),
        ("nf4", {KEY: state(shape=[24])}, r"shape is \[24\]"),
        ("nf4", {KEY: state(shape=[24, 100])}, "needs 38 elements"),
        ("nf4", {KEY: state(shape=[24, 126])}, "needs 1512"),
        ("nf4", {"weight": None}, "missing tensor '.*.weight'"),
        ("nf4", {"weight.absmax": None}, r"missing tensor 'm\.weight\.absmax'"),
        ("nf4", {"weight.quant_map": np.ones(15, np.float32)}, "needs 16 elements in f32"),
        ("nf4_nested", {KEY: state(shape=[24, 1024], nested_blocksize=256)}, "nested_offset is None"),
        ("int8", {"SCB": np.ones(23, np.float32)}, "each row needs one maximum"),
        ("int8", {"SCB": np.ones(24, np.float16)}, "needs f32 here"),
        ("int8", {"weight": np.ones((24, 96), np.float16)}, "needs i8 here"),
        ("int8", {"weight_format": np.array(2, np.uint8)}, "order of a GPU's kernels"),
    ],
)
def test_invalid_parts_of_bitsandbytes_are_refused(case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        assert bitsandbytes(case, **changes).data is not None
    assert bitsandbytes("int8", weight_format=np.array(0, np.uint8)).data.any()
