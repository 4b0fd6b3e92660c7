"""A recorded run: the events that the loop sends to observers, without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.training.events import End, EvaluationEvent, Observer, SampleEvent, Start, StepEvent
from puna.training.settings import TrainingSettings

PROMPTS = ("Gravity is", 'A <b>llama</b> & "a puna"')
METRICS = {
    "loss": 0.5,
    "accuracy": 0.75,
    "f1_macro": 0.7,
    "auc": None,
    "classes": {
        "ham": {"precision": 0.8, "recall": 0.9, "f1": 0.85, "auc": 0.99, "texts": 1200},
        "spam & <i>": {"precision": 0.7, "recall": 0.5, "f1": 0.6, "auc": None, "texts": 30},
    },
    "confusion_matrix": [[1080, 120], [15, 15]],
    "labels": ["ham", "spam & <i>"],
    "roc": {"ham": [[0.0, 0.1, 1.0], [0.0, 0.8, 1.0]]},
}  # fmt: skip


def loss(step: int) -> float:
    """Returns the loss of a step, a number with many digits."""
    return 1 + math.exp(-step / 7)


def start(folder: Path, first_step: int = 0, steps: int = 40, **settings: Any) -> Start:
    """Returns the start of the run."""
    options = TrainingSettings(model="models/tiny", data="train.jsonl", output=str(folder), **settings)
    return Start(
        options, folder, first_step, steps, 100, 20, 1_000, 99_000, 1e-3, 10.0, 500_000_000, ("forward pass: fused",)
    )


def step(number: int, **values: Any) -> StepEvent:
    """Returns a step of 400 tokens in 0.5 s."""
    fields = {"epoch": number / 10, "loss": loss(number), "learning_rate": 1e-3, "gradient_norm": 1.5} | values
    return StepEvent(step=number, tokens=400, supervised=100.0, seconds=0.5, **fields)


def play(observers: Sequence[Observer], folder: Path, steps: int = 40, *, ends: bool = True, **settings: Any) -> None:
    """Sends the events of a run with an evaluation after every tenth step."""
    for observer in observers:
        observer.started(start(folder, steps=steps, **settings))
        observer.sampled(SampleEvent(0, PROMPTS, ("before one", "before two")))
        for number in range(1, steps + 1):
            observer.stepped(step(number))
            if number % 10 == 0:
                observer.evaluated(EvaluationEvent(number, {**METRICS, "loss": loss(number)}, number == steps))
        if ends:
            observer.saved(steps, folder / "checkpoints" / f"step-{steps}")
            observer.sampled(SampleEvent(steps, PROMPTS, ("after <one>", "after two")))
            observer.ended(End(steps, "finished", "all steps", METRICS))
