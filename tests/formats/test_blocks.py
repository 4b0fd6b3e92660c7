"""Compares the table of weight formats with the package gguf, and plain element types with torch."""

from __future__ import annotations

import hashlib

import gguf
import numpy as np
import pytest
from gguf import quants

from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat, StoredTensor
from puna.formats.grids import grid
from tests.helpers.blocks import extreme_blocks

BLOCKS = 2100  # several chunks of `BlockFormat.decode` in each format, the last one incomplete


def random_blocks(form: BlockFormat, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (BLOCKS, form.bytes), np.uint8)


def reference(form: BlockFormat, blocks: np.ndarray) -> np.ndarray:
    """Returns the values of blocks, decoded by the package gguf."""
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, gguf.GGMLQuantizationType(form.ggml_id)).reshape(-1)


def test_the_table_of_formats_agrees_with_ggml() -> None:
    assert list(FORMATS) == [form.name for form in FORMATS.values()]
    for form in FORMATS.values():
        kind = gguf.GGMLQuantizationType(form.ggml_id)
        assert form.name.lower() == kind.name.lower()
        assert (form.values, form.bytes) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_decoded_values_are_bit_identical_to_gguf(form: BlockFormat) -> None:
    blocks = random_blocks(form, form.ggml_id)
    values, expected = form.decode(blocks.reshape(-1)), reference(form, blocks)
    assert values.dtype == np.float32 and values.flags.writeable
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    np.testing.assert_array_equal(values[finite].view(np.uint32), expected[finite].view(np.uint32))
    np.testing.assert_array_equal(values, expected)  # also compares infinities and NaN


HASHES = {
    "f32": "c33763050ff3bf27",
    "f16": "06bb0e5e8b50f3aa",
    "bf16": "dd077ffc16c72bc5",
    "q8_0": "cb0691998daaea5a",
    "q4_0": "53c93f2aca3ad523",
    "q4_1": "758ee346d6148290",
    "q5_0": "dafff034e1833465",
    "q5_1": "ba5d584e72c0534d",
    "iq4_nl": "e041b7ab65e5056d",
    "q2_K": "e0f9e450c4c86259",
    "q3_K": "5d5e9ce99fe599e9",
    "q4_K": "ba58d85f6dae2207",
    "q5_K": "5aff13cd7b1884a7",
    "q6_K": "b11648a759aaa9bb",
    "iq4_xs": "0ac0e0741ac315dc",
    "iq3_s": "03db9745627dcf37",
    "iq3_xxs": "eca6dc419d184948",
    "iq2_s": "77debb6348e9754e",
    "iq2_xs": "eb52e06127013a51",
    "iq2_xxs": "9cf99641d0249bbb",
    "iq1_m": "3a08cd8c4d688cc0",
    "iq1_s": "757bbe9ce965e55a",
    "tq2_0": "bd9c599ccc247e84",
    "tq1_0": "5a6d25fe91b67e2d",
    "mxfp4": "26507af0e2fe77b3",
}
"""The first 16 digits of the SHA-256 of the values that gguf 0.19.0 decodes from 300 `extreme_blocks`."""


def digest_of(values: np.ndarray) -> str:
    """Returns the hash of the bits of float32 values; all NaNs count as equal, zeros of different sign do not."""
    canonical = np.where(np.isnan(values), np.float32(np.nan), values).astype("<f4")
    return hashlib.sha256(canonical.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_values_of_extreme_scales_are_bit_identical_to_recorded_values(form: BlockFormat) -> None:
    """This test needs no oracle; `test_recorded_values_are_those_of_gguf` confirms the recorded values."""
    assert digest_of(form.decode(extreme_blocks(form, 300).reshape(-1))) == HASHES[form.name]


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_recorded_values_are_those_of_gguf(form: BlockFormat) -> None:
    assert digest_of(reference(form, extreme_blocks(form, 300))) == HASHES[form.name]


def test_grids_equal_those_of_gguf() -> None:
    for name in ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s"):
        kind = getattr(quants, name.upper())
        kind.init_grid()
        coordinates = np.searchsorted(kind.grid_map, kind.grid[0, 0])
        np.testing.assert_array_equal(grid("iq1" if name == "iq1_s" else name), coordinates)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_empty_and_unaligned_bytes_are_decoded(form: BlockFormat) -> None:
    assert form.decode(np.empty(0, np.uint8)).shape == (0,)
    blocks = random_blocks(form, 7)
    shifted = np.concatenate([np.zeros(1, np.uint8), blocks.reshape(-1)])[1:]
    np.testing.assert_array_equal(form.decode(shifted), form.decode(blocks.reshape(-1)))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_plain_types_agree_with_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    form = FORMATS[name]
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(getattr(torch, str(form.torch)))
    decoded = form.decode(values.view(torch.uint8).numpy())
    np.testing.assert_array_equal(decoded, values.float().numpy())


def test_tensors_quantised_by_the_package_gguf_are_decoded() -> None:
    values = np.random.default_rng(1).normal(size=(64, 256)).astype(np.float32)
    for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1"):
        form = FORMATS[name]
        packed = quants.quantize(values, gguf.GGMLQuantizationType(form.ggml_id))
        tensor = StoredTensor("w", (64, 256), form, packed)
        assert (
            np.abs(tensor.to_float32() - values).max() < 0.5
        )  # half a step, if the 16 levels span eight standard deviations
        np.testing.assert_array_equal(
            tensor.to_float32(), quants.dequantize(packed, gguf.GGMLQuantizationType(form.ggml_id))
        )


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((3, 33), 100, "rows of 33 values"),
        ((2, 32), 67, "67 bytes stored"),
        ((0, 32), 0, "positive axes"),
        ((1,) * 9 + (32,), 34, "up to 8"),
        ((2**63, 32), 34, "positive axes"),
    ],
)
def test_a_tensor_whose_shape_does_not_fit_its_bytes_is_refused(
    shape: tuple[int, ...], size: int, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        StoredTensor("w", shape, FORMATS["q8_0"], np.zeros(size, np.uint8))
