"""Muon, compared with torch.optim.Muon and with the published formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from puna.training.optimizers.muon import Muon, orthogonalize
from puna.training.settings import TrainingSettings

SHAPES = {"model.layers.0.a": (24, 40), "model.layers.1.a": (24, 40), "model.layers.0.b": (48, 16)}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {**SHAPES, "model.embed_tokens.weight": (30, 8), "model.layers.0.norm.weight": (16,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator) * 0.1) for name, shape in shapes.items()}


def set_gradients(named, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


SETTINGS = TrainingSettings.of({"weight_decay": 0.1, "beta2": 0.95, "momentum": 0.9})


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
def test_five_steps_are_those_of_torch():
    ours, theirs = parameters(), parameters()
    matrices = [theirs[name] for name in SHAPES]
    others = [theirs[name] for name in theirs if name not in SHAPES]
    peers = [
        torch.optim.Muon(matrices, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    optimizer, start = Muon(ours, SETTINGS), {name: item.detach().clone() for name, item in ours.items()}
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        rate = 0.02 * (step + 1)
        optimizer.step(rate)
        for peer in peers:
            peer.param_groups[0]["lr"] = rate
            peer.step()
    for name, item in ours.items():
        change, expected = item - start[name], theirs[name] - start[name]
        tolerance = 2e-2 if name in SHAPES else 1e-5  # torch orthogonalizes in bfloat16
        assert (change - expected).norm() < tolerance * expected.norm(), name


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_orthogonalize_is_the_polynomial_of_the_singular_values(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    for matrix, result in zip(x.double().numpy(), orthogonalize(x).double().numpy(), strict=True):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        np.testing.assert_allclose(result, u * s @ vt, atol=2e-5)
        assert s.min() > 0.6 and s.max() < 1.25


def test_the_scale_multiplies_gradients():
    ours, scaled = parameters(), parameters()
    first, second = Muon(ours, SETTINGS), Muon(scaled, SETTINGS)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(scaled, step)
        for parameter in scaled.values():
            parameter.grad *= 4
        first.step(0.01)
        second.step(0.01, scale=0.25)
    for name in ours:
        torch.testing.assert_close(ours[name], scaled[name], rtol=1e-6, atol=1e-7)


def test_a_restored_state_continues_bit_for_bit():
    ours = parameters()
    optimizer = Muon(ours, SETTINGS)
    for step in range(2):
        set_gradients(ours, step)
        optimizer.step(0.01)
    copies = {name: nn.Parameter(item.detach().clone()) for name, item in ours.items()}
    other = Muon(copies, SETTINGS)
    other.load_state({name: item.clone() for name, item in optimizer.state().items()})
    for named, used in ((ours, optimizer), (copies, other)):
        set_gradients(named, 2)
        used.step(0.01)
    assert all(torch.equal(ours[name], copies[name]) for name in ours)
