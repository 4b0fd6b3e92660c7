"""`Loop`: the steps of a run, with evaluations, samples, saved states and stops.

The state of a run is always that after a complete step: failures are detected before the optimizer changes anything,
and whatever ends a run, the state after its last complete step is saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from puna.errors import TrainingError
from puna.training.batch import Batch
from puna.training.checkpoints import CheckpointStore, State, is_disk_full
from puna.training.events import EvaluationEvent, Observer, SampleEvent, StepEvent
from puna.training.messages import how_to_resume
from puna.training.metrics import is_better
from puna.training.optimizers.schedules import rate_at
from puna.training.plan import Plan
from puna.training.safety import Interrupts, Movement, SpikeDetector, TrainingInterrupted
from puna.training.safety.rows import describe_rows, remedy
from puna.training.settings import TrainingSettings
from puna.training.trainer import StepResult, Trainer

_CHECKED_STEPS = 2
"""Steps after which the parameters must have changed. LoRA's `a` has no gradient in the first, because `b` is zero."""


@dataclass
class Progress:
    """The part of a run's state that JSON holds.

    Attributes:
        losses: of each completed step.
        evaluated: the step of the latest evaluation, and its metrics.
        best: the step with the best metric, and its metrics.
        without_gain: number of evaluations since the best.
    """

    losses: list[float] = field(default_factory=list)
    evaluated: tuple[int, dict[str, Any]] = (-1, {})
    best: tuple[int, dict[str, Any]] = (-1, {})
    without_gain: int = 0

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return len(self.losses)


@dataclass
class Loop:
    """The steps of a run; `run` completes it.

    Attributes:
        trainer: the four primitives.
        plan: the batches of each step.
        held_out: returns the batches of the held-out documents; None without held-out data.
        rate: the highest learning rate.
        store: the saved states.
        identity: values of the state that identify the run: settings and data.
        observers: receive the events.
    """

    trainer: Trainer
    plan: Plan
    held_out: Callable[[], Iterable[Batch]] | None
    settings: TrainingSettings
    rate: float
    store: CheckpointStore
    identity: dict[str, Any]
    observers: Sequence[Observer]
    progress: Progress = field(default_factory=Progress)
    reason: str = "finished"

    def __post_init__(self) -> None:
        self._spikes = SpikeDetector(self.settings.spike_threshold)
        self._movement: Movement | None = None
        self._without_gradients: frozenset[str] | None = None  # parameters, in the last step; unknown after resuming
        self._consistent = True  # whether the trainer's state is that after the last step in `progress`

    def restore(self, state: State) -> None:
        """Continues after the last step of a state."""
        self.trainer.load_state(state.tensors)
        record = state.record
        self.progress = Progress(
            list(record["losses"]), _pair(record["evaluated"]), _pair(record["best"]), record["without_gain"]
        )
        self._spikes.load_state(record["spikes"])
        self._movement = Movement(self.trainer.trainable, record["initial"])

    def state(self) -> State:
        """Returns the state after the last complete step."""
        assert self._movement is not None, "the run has started"
        progress = self.progress
        record = {
            "losses": progress.losses,
            "evaluated": progress.evaluated,
            "best": progress.best,
            "without_gain": progress.without_gain,
            "spikes": self._spikes.state(),
            "initial": self._movement.initial,
        }
        return State(progress.step, self.trainer.save_state(), {**self.identity, **record})

    def run(self) -> None:
        """Runs the steps that remain, then evaluates and checks the result.

        Raises:
            TrainingError: a step must not happen, or parameters did not change as they should.
            TrainingInterrupted: Ctrl-C or SIGTERM.
            StorageError: a state cannot be written.
        """
        if self._movement is None:
            self._movement = Movement(self.trainer.trainable)
        parameters = sum(item.nbytes for item in self.trainer.trainable.parameters.values())
        self.store.reserve(max(self.state().size, 3 * parameters))  # the first state has no moments yet
        with Interrupts(self._stopping) as interrupts:
            try:
                self._check_metric()
                self._sample(0)
                self._steps(interrupts)
                self._finish()
            except KeyboardInterrupt as exc:
                with interrupts.ignored():  # impatient further signals must not lose the state
                    interrupted = self._interrupted()
                raise interrupted from exc
            except BaseException:
                with interrupts.ignored():
                    self._save_after_failure()
                raise
        self.store.release()

    def _stopping(self) -> None:
        for observer in self.observers:
            observer.stopping()

    def _steps(self, interrupts: Interrupts) -> None:
        settings, step = self.settings, self.progress.step
        if self._is_evaluation_due():  # the run was interrupted between the step and its evaluation
            self._evaluate()
        while step < self.plan.steps:
            if 0 < settings.patience <= self.progress.without_gain:
                self.reason = "stopped"  # also if the run was resumed from its last evaluation
                return
            stop = self._step(interrupts)
            step = self.progress.step
            if self._is_evaluation_due():
                stop |= self._evaluate()
            if settings.save_steps and step % settings.save_steps == 0:
                self._save()
            if interrupts.requested:
                raise KeyboardInterrupt
            if stop:
                self.reason = "stopped"
                return

    def _step(self, interrupts: Interrupts) -> bool:
        """Computes and completes one step; returns whether an observer requests a stop."""
        started, step = time.monotonic(), self.progress.step
        batches = self.plan.window(step)
        weight = math.fsum(self.trainer.task.weight(batch) for batch in batches)
        if weight <= 0:
            raise TrainingError(f"step {step + 1} has no supervised tokens: {describe_rows(batches[0])}")
        self.trainer.optimizer.zero_gradients()  # an interrupted step may have left some
        results = [self.trainer.forward_backward(batch, 1 / weight) for batch in batches]
        loss, norm = math.fsum(result.loss for result in results), self.trainer.gradient_norm()
        if fault := self._spikes.fault(loss, norm):
            self._refuse(step, fault, batches, results)
        unmoved = self._without_gradient() if step < _CHECKED_STEPS else frozenset()
        rate = rate_at(step, self.plan.steps, self.settings, self.rate)
        limit = self.settings.max_gradient_norm
        with interrupts.protected():
            self._consistent = False
            self.trainer.optim_step(rate, limit / (norm + 1e-6) if 0 < limit < norm else 1.0)
            self._spikes.add(loss, norm)
            self.progress.losses.append(loss)
            self._consistent = True
        if step < _CHECKED_STEPS and self._movement is not None:
            self._movement.check(unmoved, frozen=step == 0)
        self._without_gradients = unmoved
        tokens = sum(result.tokens for result in results)
        seconds = time.monotonic() - started
        event = StepEvent(step + 1, self.plan.epoch(step + 1), loss, rate, norm, tokens, weight, seconds)
        return _any_requests([observer.stepped(event) for observer in self.observers])

    def _without_gradient(self) -> frozenset[str]:
        """Returns the names of the parameters whose gradient is exactly zero."""
        parameters = self.trainer.trainable.parameters
        return frozenset(name for name, item in parameters.items() if item.grad is None or not item.grad.any())

    def _refuse(self, step: int, fault: str, batches: Sequence[Batch], results: Sequence[StepResult]) -> None:
        """Raises the error of a step that must not happen, with the batch that contributed most to it."""
        self.trainer.optimizer.zero_gradients()
        worst = max(range(len(batches)), key=lambda index: _badness(results[index].loss))
        where = f"batch {worst + 1} of {len(batches)}" if len(batches) > 1 else "the batch"
        raise TrainingError(
            f"step {step + 1} was not done: {fault}. The parameters are those after step {step}. In {where}: "
            f"{describe_rows(batches[worst], self.trainer)}. {remedy(self.trainer)}"
        )

    def _is_evaluation_due(self) -> bool:
        step, interval = self.progress.step, self.settings.eval_steps
        return interval > 0 and step > 0 and step % interval == 0 and self.progress.evaluated[0] != step

    def _evaluate(self) -> bool:
        """Evaluates the held-out data; returns whether the run should stop."""
        if self.held_out is None:
            return False
        step, name = self.progress.step, self.settings.best_metric
        metrics = self.trainer.evaluate(self.held_out())
        loss = metrics.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            self._consistent = False  # not saved: a resumed run would fail again, and an earlier state be removed
            earlier = [saved for saved in self.store.steps() if saved < step]
            where = f"the state after step {earlier[-1]} is in {self.store.path(earlier[-1])}" if earlier else ""
            raise TrainingError(
                f"the loss of the held-out data after step {step} is {loss}, so that the trained parameters are of no "
                f"use and are not saved; lower learning_rate ({self.rate:g}){'; ' * bool(where)}{where}"
            )
        is_first = self.progress.best[0] < 0
        is_best = is_first or is_better(name, metrics[name], self.progress.best[1][name])
        self.progress.evaluated = (step, metrics)
        self.progress.without_gain = 0 if is_best else self.progress.without_gain + 1
        if is_best:
            self.progress.best = (step, metrics)
            if self.settings.keep_best:
                self._save()
        event = EvaluationEvent(step, metrics, is_best)
        return _any_requests([observer.evaluated(event) for observer in self.observers])

    def _check_metric(self) -> None:
        """Raises TrainingError before the first step if no evaluation has the metric that chooses the best state."""
        name = self.settings.best_metric
        if self.held_out is None or name == "loss":
            return
        metrics = self.trainer.evaluate(islice(self.held_out(), 1))
        numbers = [key for key, value in metrics.items() if isinstance(value, int | float | None)]
        if name not in numbers:
            raise TrainingError(
                f"best_metric is {name!r}, which is not a number of the evaluations; choose one of {', '.join(numbers)}"
            )

    def _sample(self, step: int) -> None:
        prompts = self.settings.sample_prompts
        if prompts and step == self.progress.step:
            texts = self.trainer.sample(prompts, self.settings.sample_tokens)
            for observer in self.observers:
                observer.sampled(SampleEvent(step, prompts, tuple(texts)))

    def _finish(self) -> None:
        """Evaluates and checks the result; with keep_best, restores the best parameters."""
        if self.progress.evaluated[0] != self.progress.step:
            self._evaluate()
        best = self.progress.best[0]
        if self._movement is not None:
            excepted = frozenset[str]() if self.progress.step >= _CHECKED_STEPS else self._without_gradients
            self._movement.check(excepted)
        self._save()
        if self.settings.keep_best and 0 <= best < self.progress.step:
            self.trainer.load_state(self.store.load(best).tensors, parameters_only=True)
            self._consistent = False  # the state is that of an earlier step, and saved already
        self._sample(self.progress.step)

    def _save(self) -> None:
        """Saves the state, with the reserved space if the disk is full; that ends the run."""
        state = self.state()
        keep = [self.progress.best[0]] if self.settings.keep_best else []
        try:
            path = self.store.save(state, keep)
        except OSError as exc:
            if not is_disk_full(exc) or not self.store.release():
                raise
            path = self.store.save(state, keep)
            raise TrainingError(
                f"the disk is full; the state after step {state.step} is in {path}. Free space, then "
                f"{how_to_resume(path.parent.parent)}"
            ) from exc
        for observer in self.observers:
            observer.saved(state.step, path)

    def _save_after_failure(self) -> None:
        """Saves the state after the last complete step, unless that is impossible or done; the failure is raised."""
        if not self._consistent or self.progress.step in (0, *self.store.steps()):
            return
        try:
            self._save()
        except Exception:
            return  # the earlier error is the one to report

    def _interrupted(self) -> TrainingInterrupted:
        step = self.progress.step
        is_unsaved = self._consistent and step > 0 and step not in self.store.steps()
        if is_unsaved and False not in [observer.interrupted(step) for observer in self.observers]:
            self._save()
        return TrainingInterrupted(step, self.store.path(step) if step in self.store.steps() else None)


def _any_requests(answers: Sequence[bool | None]) -> bool:
    """Returns whether an observer requests a stop; every observer has received the event."""
    return any(answers)


def _badness(loss: float) -> float:
    return math.inf if math.isnan(loss) else loss


def _pair(value: Any) -> tuple[int, dict[str, Any]]:
    step, metrics = value
    return step, metrics
