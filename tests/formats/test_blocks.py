"""Compares the table of weight formats with the package gguf, and plain element types with torch."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS, BlockFormat, StoredTensor

BLOCKS = 2100  # several chunks of `BlockFormat.decode` in each format, the last one incomplete


def random_blocks(form: BlockFormat, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (BLOCKS, form.bytes), np.uint8)


def reference(form: BlockFormat, blocks: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, gguf.GGMLQuantizationType(form.ggml_id)).reshape(-1)


def test_the_table_agrees_with_ggml() -> None:
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


def test_tensors_quantised_by_gguf_are_decoded() -> None:
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
