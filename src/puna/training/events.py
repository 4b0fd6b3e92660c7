"""Events of a training run, and `Observer`, which displays or records them. Values only; no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.training.settings import TrainingSettings


@dataclass(frozen=True)
class Start:
    """The description of a run, before its first step.

    Attributes:
        settings: the settings of the run.
        output: folder of the result.
        first_step, steps: the number of steps that a resumed run has completed (else 0), and of all steps.
        examples, held_out: numbers of documents.
        trained, frozen: numbers of parameters.
        learning_rate: the highest rate of the schedule.
        estimated_seconds, estimated_memory: time of all steps, and maximum bytes of the process; 0 if not estimated.
        notes: choices to tell the user, such as the formula of the learning rate or the implementation of forward.
    """

    settings: TrainingSettings
    output: Path
    first_step: int
    steps: int
    examples: int
    held_out: int
    trained: int
    frozen: int
    learning_rate: float
    estimated_seconds: float = 0.0
    estimated_memory: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step.

    Attributes:
        step: counted from 1.
        epoch: passes over the data after this step, with a fraction.
        loss: weighted mean over the step, in nats per token (or the task's unit).
        learning_rate: the rate of this step.
        gradient_norm: before clipping.
        tokens: number of tokens of this step, supervised or not.
        supervised: total weight of this step.
        seconds: wall time of this step, without evaluations, samples and saves.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    supervised: float
    seconds: float


@dataclass(frozen=True)
class EvaluationEvent:
    """The metrics of held-out data after a step; `best` if no earlier evaluation was better."""

    step: int
    metrics: Mapping[str, Any]
    best: bool = False


@dataclass(frozen=True)
class SampleEvent:
    """Texts that the model wrote after a step, one per prompt; step 0 is before the training."""

    step: int
    prompts: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class End:
    """The end of a run.

    Attributes:
        step: number of completed steps.
        reason: "finished", "stopped" (by a callback or early stopping), "interrupted" or "failed".
        message: the reason in words.
        metrics: of the last or, with keep_best, the best evaluation.
    """

    step: int
    reason: str
    message: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Observer:
    """Receives the events of a run; every method of this base class does nothing.

    Observers never change the training. An error in one of them ends the run after the step's state is complete.
    """

    def preparing(self, done: int, total: int, unit: str) -> None:
        """Parts of the data are tokenised, before `started`; the unit of the numbers is "rows" or "bytes"."""

    def started(self, event: Start) -> None:
        """The run begins or is resumed."""

    def stepped(self, event: StepEvent) -> bool | None:
        """An optimizer step is complete; True requests a stop after it."""

    def evaluated(self, event: EvaluationEvent) -> bool | None:
        """Held-out data were evaluated; True requests a stop."""

    def sampled(self, event: SampleEvent) -> None:
        """The model continued the sample prompts."""

    def saved(self, step: int, path: Path) -> None:
        """The state after a step is complete on the disk."""

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM will end the run after the current step; called inside the signal handler."""

    def interrupted(self, step: int) -> bool | None:
        """Ctrl-C or SIGTERM ended the run after a step that is not saved yet; False requests not to save it."""

    def ended(self, event: End) -> None:
        """The run has ended; called once, also after an error."""
