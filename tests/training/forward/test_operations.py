"""Attention and the other operations, native and in PyTorch, compared with PyTorch's autograd in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.native import training as native
from puna.training.forward.fused.attention import GroupedAttention, NativeAttention, group_documents
from puna.training.forward.fused.operations import NativeOperations, TorchOperations

NATIVE = pytest.mark.skipif(not native.is_available(), reason="the processor has no AVX2")
BF16 = pytest.mark.skipif(not native.has_attention(), reason="the processor has no AVX-512 BF16")
KINDS = [
    pytest.param((TorchOperations(), torch.float32, 1e-6), id="torch-float32"),
    pytest.param((TorchOperations(), torch.bfloat16, 1e-2), id="torch-bfloat16"),
    pytest.param((NativeOperations(), torch.bfloat16, 3e-3), id="native", marks=NATIVE),  # one rounding: 2^-9 at most
]


def near(value: Tensor, exact: Tensor, limit: float) -> bool:
    return bool((value.double() - exact).norm() <= limit * exact.norm())


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 15, 40, 64])
def test_norms(kind, width):
    operations, dtype, limit = kind
    x, g, add = (random(9, width, dtype=dtype, seed=seed) for seed in range(3))
    weight = 1 + random(width, dtype=torch.float32, seed=4)
    exact = x.double().requires_grad_()
    out = F.rms_norm(exact, (width,), weight.double(), 1e-5)
    out.backward(g.double())
    assert near(operations.norm(x, weight, 1e-5), out.detach(), 2 * limit)
    expected = exact.grad + add.double()
    assert (operations.norm_backward(g, x, weight, 1e-5, add).double() - expected).abs().max() < 6 * limit
    assert (operations.norm_backward(g, x, weight, 1e-5, None).double() - exact.grad).abs().max() < 6 * limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 16, 43])
def test_gated_activations(kind, width):
    operations, dtype, limit = kind
    gate_up, g = 3 * random(7, 2 * width, dtype=dtype, seed=0), random(7, width, dtype=dtype, seed=1)
    exact = gate_up.double().requires_grad_()
    out = F.silu(exact[:, :width]) * exact[:, width:]
    out.backward(g.double())
    assert near(operations.gated(gate_up), out.detach(), limit)
    assert near(operations.gated_backward(g, gate_up), exact.grad, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [4, 16, 24])
def test_rotations(kind, half):
    operations, dtype, limit = kind
    x = random(5, 3 * 2 * half, dtype=dtype, seed=0)
    phase = random(5, half, dtype=torch.float32, seed=1)
    turns = torch.polar(torch.ones_like(phase).double(), phase.double())[:, None]
    heads = x.double().view(5, 3, 2, half)
    complex_heads = torch.complex(heads[:, :2, 0], heads[:, :2, 1]) * turns
    exact = heads.clone()
    exact[:, :2] = torch.view_as_real(complex_heads).movedim(-1, 2)
    before = x.clone()
    operations.rotate_(x, 2, phase.cos(), phase.sin(), 1)
    assert near(x.view(5, 3, 2, half), exact, limit)
    operations.rotate_(x, 2, phase.cos(), phase.sin(), -1)
    assert near(x, before.double(), 2 * limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [3, 37, 5000])
def test_cross_entropy(kind, vocabulary):
    operations, dtype, limit = kind
    logits = 5 * random(6, vocabulary, dtype=dtype, seed=0)
    targets = torch.arange(6) % vocabulary
    factors = torch.tensor([1.0, 0.5, 2.0, 1e-3, 1.0, 3.0])
    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(exact, targets, reduction="none") @ factors.double()
    loss.backward()
    untouched = logits.clone()
    assert operations.cross_entropy(untouched, targets, factors, False).item() == pytest.approx(loss.item(), rel=1e-5)
    assert torch.equal(untouched, logits)
    assert operations.cross_entropy(logits, targets, factors, True).item() == pytest.approx(loss.item(), rel=1e-5)
    assert near(logits, exact.grad, limit)


@BF16
def test_cross_entropy_of_extreme_logits_is_finite():
    logits = torch.tensor([[3e38, -3e38, 0.0], [-3e38, -3e38, -3e38]], dtype=torch.bfloat16)
    loss = NativeOperations().cross_entropy(logits, torch.tensor([0, 1]), torch.ones(2), True)
    assert loss.item() == pytest.approx(1.0986123, rel=1e-6)
    assert logits.isfinite().all()


def exact_attention(
    qkv: Tensor, g: Tensor, lengths: tuple[int, ...], heads: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Attention of each document alone and the gradient of qkv, in float64."""
    queries, keys, width = heads
    x = qkv.double().requires_grad_()
    outs = []
    for document in torch.split(x, lengths):
        q, k, v = document.view(len(document), -1, width).transpose(0, 1).split((queries, keys, keys))
        k, v = (part.repeat_interleave(queries // keys, 0) for part in (k, v))
        outs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1))
    out = torch.cat(outs)
    out.backward(g.double())
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("heads", [(4, 2, 16), (3, 1, 64), (2, 2, 32), (3, 3, 48)])
@pytest.mark.parametrize("native_kernels", [False, pytest.param(True, marks=BF16)])
def test_attention_and_its_gradient(heads, native_kernels):
    lengths = (3, 1, 70, 64, 48, 97, 2, 300)
    dtype = torch.bfloat16 if native_kernels else torch.float32
    total, columns = sum(lengths), (heads[0] + 2 * heads[1]) * heads[2]
    qkv, g = random(total, columns, dtype=dtype, seed=0), random(total, heads[0] * heads[2], dtype=dtype, seed=1)
    exact, exact_gradient = exact_attention(qkv, g, lengths, heads)
    if native_kernels:
        attention, limit = NativeAttention(*heads, lengths), 4e-3
    else:
        attention, limit = GroupedAttention(*heads, tuple(group_documents(lengths, heads[0]))), 1e-6
    out, kept = attention.forward(qkv)
    gradient = attention.backward(g, qkv, out, kept)
    for document, other, value, expected in zip(
        *(torch.split(x, lengths) for x in (out, exact, gradient, exact_gradient)), strict=True
    ):
        assert near(document, other, limit)
        assert (value.double() - expected).norm() <= 2 * limit * expected.norm() + 1e-2 * limit * g.double().norm()
    again, _ = attention.forward(qkv)
    assert torch.equal(again, out)
    assert torch.equal(attention.backward(g, qkv, out, kept), gradient)


def test_many_short_documents_become_few_groups():
    lengths = tuple(int(20 + 13 * (index % 7)) for index in range(200))
    groups = group_documents(lengths, 9)
    assert len(groups) <= 8
    tokens = torch.cat([group.index[group.index < sum(lengths)] for group in groups])
    assert torch.equal(tokens.sort().values, torch.arange(sum(lengths)))
    assert sum(group.index.numel() for group in groups) <= 1.25 * sum(lengths)
