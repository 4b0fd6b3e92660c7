"""AdamW, compared with torch.optim.AdamW."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from puna.training.optimizers.adamw import AdamW
from puna.training.settings import TrainingSettings

SETTINGS = TrainingSettings.of({"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6})
SHAPES = {"a": (24, 40), "b": (7,), "frozen": (3, 3)}


def parameters():
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(SHAPES[name], generator=generator) for name in ("a", "b")}


def test_steps_are_those_of_torch_and_continue_from_a_saved_state():
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, SETTINGS)
    peer = torch.optim.AdamW(theirs.values(), lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step, scale in enumerate((1.0, 0.25, 1.0, 0.5)):
        if step == 2:
            state = {name: value.clone() for name, value in optimizer.state().items()}
            optimizer = AdamW(ours, SETTINGS)
            optimizer.load_state(state)
        for name, gradient in gradients(step).items():
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient * scale
        optimizer.step(0.02, scale)
        peer.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
    assert torch.equal(ours["frozen"], parameters()["frozen"])
    for name in ("a", "b"):
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state()[f"{moment}.{name}"], peer.state[theirs[name]][moment])
    assert not any(name.endswith("frozen") for name in optimizer.state())


@pytest.mark.slow
def test_a_step_does_not_import_the_compiler_of_torch():
    code = (
        "import sys, torch; from puna.training.optimizers.adamw import AdamW; "
        "from puna.training.settings import TrainingSettings; a = torch.nn.Parameter(torch.ones(3)); "
        "a.grad = torch.ones(3); AdamW({'a': a}, TrainingSettings.of({})).step(0.1); "
        "assert a[0] < 1; print('torch._dynamo' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
