"""Native decoders of packed matrices and sums of squares, compared with PyTorch's decoders and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from puna.errors import BackendError
from puna.formats.blocks import FORMATS
from puna.model.quantized import PackedMatrix
from puna.native import training as native
from puna.training.forward.fused.matrices import dequantize

pytestmark = pytest.mark.skipif(not native.is_available(), reason="the processor has no AVX2")
SCALES = {"q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q8_0": (0,), "q4_K": (0, 2), "q5_K": (0, 2), "q6_K": (208,)}


def packed(form: str, rows: int, seed: int) -> PackedMatrix:
    """A matrix of 512 columns of random bits, except for the float16 scales of its blocks."""
    generator = np.random.default_rng(seed)
    block = FORMATS[form]
    data = generator.integers(0, 256, (rows, 512 // block.values, block.bytes), np.uint8)
    for at in SCALES[form]:
        scales = generator.normal(size=data.shape[:2]).astype(np.float16)
        data[..., at : at + 2] = scales[..., None].view(np.uint8)
    return PackedMatrix("w", form, torch.from_numpy(data.reshape(rows, -1)), 512)


@pytest.mark.parametrize("form", SCALES)  # q5_0 has no native decoder
def test_matrices_have_the_bits_of_the_decoders_in_pytorch(form):
    assert (form in native.DECODED) == (form != "q5_0")
    matrices = [packed(form, 33, 0), packed("q4_0", 5, 1), packed(form, 18, 2)]
    expected = torch.cat([matrix.dequantize(torch.bfloat16) for matrix in matrices])
    assert expected.float().std() > 0.1
    assert torch.equal(dequantize(matrices, torch.bfloat16), expected)
    wide = torch.cat([matrix.dequantize(torch.float32) for matrix in matrices])
    assert torch.equal(dequantize(matrices, torch.float32), wide)


def test_formats_without_a_decoder_are_refused():
    out = torch.empty(1, 32, dtype=torch.bfloat16)
    with pytest.raises(BackendError):
        native.call("decode", 1, FORMATS["q5_0"].ggml_id, torch.zeros(22, dtype=torch.uint8), 1, 32, out, None)


def test_sums_of_squares_do_not_depend_on_threads():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) * 10.0**size for size in (1, 0, 3)]
    tensors += [torch.randn(size, generator=generator) for size in (70_001, 16_384, 95)]
    pairs = [(tensor, tensor.numel()) for tensor in tensors]
    exact = sum(float(tensor.double().square().sum()) for tensor in tensors)
    one, two = (native.sum_of_squares(pairs, threads) for threads in (1, 2))
    assert one == two == pytest.approx(exact, rel=1e-6)
    assert native.sum_of_squares([], 1) == 0
