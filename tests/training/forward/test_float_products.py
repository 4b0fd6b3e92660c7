"""Products of modules in float32: values and gradients of the converted tensors, without copies that are kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from puna.model.quantized import PackedMatrix, QuantLinear
from puna.training.forward import float_products


@pytest.fixture(autouse=True)
def _slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor of the test counts as one that is slow in bfloat16."""
    monkeypatch.setattr(float_products, "product_dtype", lambda dtype: torch.float32)


def operands(trained: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 5, 24), "weight": (40, 24), "bias": (40,)}
    values = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    return {name: value.requires_grad_(name in trained.split()) for name, value in values.items()}


@pytest.mark.parametrize("trained", ["x", "weight", "bias", "x weight bias"])
def test_a_linear_layer_is_that_of_float32_rounded(trained):
    own, expected = operands(trained), operands(trained)
    with float_products.float_products(torch.bfloat16):
        result = F.linear(own["x"], own["weight"], own["bias"])
    reference = F.linear(*(expected[name].float() for name in ("x", "weight", "bias"))).bfloat16()
    assert torch.equal(result, reference)
    gradient = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    result.backward(gradient)
    reference.backward(gradient)
    for name, value in own.items():
        assert (value.grad is not None) == (name in trained.split()), name
        if value.grad is not None:
            assert value.grad.dtype == torch.bfloat16
            torch.testing.assert_close(value.grad, expected[name].grad, rtol=2**-8, atol=0)


@pytest.mark.parametrize(("trained", "kept"), [("x", ["weight"]), ("weight", ["x"]), ("x weight", ["x", "weight"])])
def test_no_converted_copy_is_kept_for_the_backward_pass(trained, kept):
    own, pointers = operands(trained), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        pointers.append(tensor.untyped_storage().data_ptr())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with float_products.float_products(torch.bfloat16), hooks:
        F.linear(own["x"], own["weight"], own["bias"])
    assert pointers == [own[name].untyped_storage().data_ptr() for name in kept]


def test_a_packed_matrix_is_multiplied_in_float32_in_both_directions(monkeypatch):
    blocks = torch.zeros(40, 34, dtype=torch.uint8)  # q8_0: a float16 scale and 32 bytes per row
    blocks[:, 1] = 0x30  # 0.125
    blocks[:, 2:] = torch.arange(40 * 32, dtype=torch.int32).view(40, 32) % 251
    layer, used = QuantLinear(PackedMatrix("w", "q8_0", blocks, 32)), []
    original = PackedMatrix.values
    monkeypatch.setattr(PackedMatrix, "values", lambda *values: used.append(values[2]) or original(*values))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with float_products.float_products(torch.bfloat16):
        result = layer(x)
    result.sum().backward()
    assert used == [torch.float32, torch.float32]
    wide = x.detach().float().requires_grad_()
    layer(wide).sum().backward()
    assert torch.equal(result, layer(x.detach().float()).bfloat16())
    assert torch.equal(x.grad, wide.grad.bfloat16())
