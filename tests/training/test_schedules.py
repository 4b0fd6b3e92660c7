"""Learning rates by step, compared with the schedules of transformers and with closed formulas."""

from __future__ import annotations

import pytest
import torch

from puna.training.optimizers.schedules import rate_at, warmup_steps
from puna.training.settings import TrainingSettings

STEPS = 40


def rates(**options) -> list[float]:
    settings = TrainingSettings(**options)
    return [rate_at(step, STEPS, settings, 2.0) for step in range(STEPS)]


def rates_of_transformers(name: str, **arguments) -> list[float]:
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = transformers.get_scheduler(name, optimizer, num_training_steps=STEPS, **arguments)
    result = []
    for _ in range(STEPS):
        result.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return result


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant")])
def test_rates_without_warm_up_equal_those_of_transformers(name, theirs):
    assert rates(schedule=name) == pytest.approx(rates_of_transformers(theirs, num_warmup_steps=0), abs=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("linear", "linear"), ("cosine", "cosine")])
def test_rates_after_the_warm_up_equal_those_of_transformers(name, theirs):
    expected = rates_of_transformers(theirs, num_warmup_steps=10)
    assert rates(schedule=name, warmup=10)[10:] == pytest.approx(expected[10:], abs=1e-12)


def test_wsd_equals_that_of_transformers():
    expected = rates_of_transformers(
        "warmup_stable_decay",
        num_warmup_steps=0,
        scheduler_specific_kwargs={"num_decay_steps": 8, "decay_type": "linear", "min_lr_ratio": 0.1},
    )
    assert rates(schedule="wsd", final_rate=0.1) == pytest.approx(expected, abs=1e-12)


def test_the_warm_up_rises_linearly_and_begins_above_zero():
    assert rates(warmup=3, schedule="constant")[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert warmup_steps(TrainingSettings(warmup=0.1), STEPS) == 4
    assert warmup_steps(TrainingSettings(warmup=1000), STEPS) == STEPS
    assert min(rates(warmup=0.5)) > 0


def test_the_final_rate_is_the_limit_of_the_decay():
    last = rates(schedule="cosine", final_rate=0.25)[-1]
    assert 0.5 < last < 0.51
    assert rates(schedule="constant", final_rate=0.25) == [2.0] * STEPS
