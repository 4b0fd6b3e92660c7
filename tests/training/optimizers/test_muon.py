"""Muon, compared with torch.optim.Muon and with the published formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from puna.training.optimizers import muon
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


def test_the_momentum_of_a_matrix_that_a_state_lacks_is_0():
    named = parameters()
    optimizer = Muon(named, SETTINGS)
    set_gradients(named, 0)
    optimizer.step(0.01)
    state = {name: item.clone() for name, item in optimizer.state().items()}
    lacking = f"{muon._BUFFER}model.layers.0.a"
    optimizer.load_state({name: item for name, item in state.items() if name != lacking})
    for name, item in optimizer.state().items():
        assert torch.equal(item, torch.zeros_like(item) if name == lacking else state[name])
    assert state[lacking].any()


def test_matrices_are_orthogonalised_some_at_a_time_with_the_same_result(monkeypatch):
    results = []
    for values in (1 << 22, 24 * 40, 1):
        monkeypatch.setattr(muon, "_PART_VALUES", values)
        named = parameters()
        optimizer = Muon(named, SETTINGS)
        set_gradients(named, 0)
        optimizer.step(0.01)
        results.append(named)
    for name, item in results[0].items():
        for other in results[1:]:
            torch.testing.assert_close(other[name], item, rtol=1e-6, atol=1e-7)


def test_the_momentum_exists_before_the_first_step_and_a_step_needs_what_it_says():
    generator = torch.Generator().manual_seed(0)
    named = {
        f"model.layers.{index}.a": nn.Parameter(torch.randn(1024, 1536, generator=generator)) for index in range(6)
    }
    optimizer = Muon(named, SETTINGS)
    assert sum(item.nbytes for item in optimizer.state().values()) == sum(item.nbytes for item in named.values())
    for item in named.values():
        item.grad = torch.randn(item.shape, generator=generator)
    existing = [*named.values(), *(item.grad for item in named.values()), *optimizer.state().values()]
    with _Allocations(existing) as allocations:
        optimizer.step(0.01)
    assert 0.5 * optimizer.step_bytes < allocations.most <= optimizer.step_bytes


class _Allocations(TorchDispatchMode):
    """The bytes of tensors that exist at the same time at most, of those that operations in the block make.

    Args:
        existing: tensors that do not count.
    """

    def __init__(self, existing):
        super().__init__()
        self._existing = {item.untyped_storage().data_ptr() for item in existing}
        self._alive, self.most = {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, torch.Tensor) and item.untyped_storage().data_ptr() not in self._existing:
                storage = item.untyped_storage()
                self._alive.setdefault(storage.data_ptr(), (StorageWeakRef(storage), storage.nbytes()))
        self._alive = {key: value for key, value in self._alive.items() if not value[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return result
