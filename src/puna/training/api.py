"""`puna.train`: trains a model on data, and saves the result with everything that repeats it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from puna.adapters import save_adapter
from puna.checkpoint import locate_model
from puna.errors import ArgumentError, ConfigError, show, suggestion
from puna.files import atomic_write
from puna.training.checkpoints import CheckpointStore, check_same_run
from puna.training.data.readers.open import are_paths
from puna.training.estimate import limited
from puna.training.events import End, EvaluationEvent, Observer, Start, StepEvent
from puna.training.forward.base import Forward
from puna.training.forward.choice import forward_for
from puna.training.forward.fused.frozen import ActivationCache, read_cache_size
from puna.training.forward.fused.products import note_of_products
from puna.training.limits import TimeLimit, check_context, read_limits
from puna.training.loop import Loop
from puna.training.memory import kept_memory, return_free_memory
from puna.training.methods.base import Trainable
from puna.training.methods.table import METHODS
from puna.training.optimizers.schedules import warmup_notes
from puna.training.optimizers.table import OPTIMIZERS
from puna.training.output import (
    CHECKPOINTS,
    SETTINGS,
    RunRecord,
    choose_output,
    earlier_choices,
    locked,
    remove_earlier_run,
)
from puna.training.plan import evaluation_batches, plan_run
from puna.training.probe import measure_pass
from puna.training.report import report_observers
from puna.training.report.equivalent import command_line
from puna.training.safety import Interrupts, TrainingInterrupted
from puna.training.settings import TrainingSettings, check_held_out, check_task_options, settings_text, task_defaults
from puna.training.settings.signature import shows_settings
from puna.training.tasks.base import Examples, Task
from puna.training.tasks.table import TASKS
from puna.training.trainer import Trainer

_FORMULA = "(5e-4 * (2000 / hidden size) ** 0.781 for LoRA, a tenth for full)"
"""See `Method.learning_rate`."""

Callback = Observer | Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        losses: of each step, also of those before the run was resumed: weighted means in nats per token, or in the unit
            of the task.
        metrics: of the held-out data, at the last step or, with keep_best, at the best; empty without such data.
        path: the folder with the adapter or model, training.toml, run.json and the checkpoints.
        settings: all settings of the run.
        notes: choices that the run made, such as the learning rate.
    """

    losses: list[float]
    metrics: dict[str, Any]
    path: Path
    settings: TrainingSettings
    notes: tuple[str, ...] = ()


@shows_settings
def train(
    model: str | PathLike[str] | None,
    data: Any,
    task: str = "sft",
    *,
    method: str | None = None,
    output: str | PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainingResult:
    """Trains a model, or a small adapter for it, on a CPU.

    Args:
        model: a local path, or owner/name on the hub; None for the default model, or for a new model (pretrain).
        data: paths of files or folders, names of hub data sets, or rows in memory: a list of dictionaries, or an object
            of the library datasets.
        task: sft (answers of chats, prompts or plain text), classify, or pretrain.
        method: the parameters that train: full, lora, qlora, ia3, prompt, ptuning, prefix or bottleneck; by default
            lora, for pretrain full.
        output: the folder of the result; by default runs/MODEL-TASK-METHOD.
        callbacks: `Observer` objects, or functions that receive each step and evaluation as a dictionary; True as their
            result ends the run.
            {options}

    Raises:
        ArgumentError: there is no option of a name.
        ConfigError: an option is not valid, or does not fit the model.
        DataError: a row of the data cannot be used; the message names the file and the line.
        TrainingError: a loss or gradient is not finite or a spike, a parameter does not learn, or the run cannot be
            resumed.
        TrainingInterrupted: Ctrl-C; the state is saved. It is a KeyboardInterrupt.
        StorageError: a file cannot be written.
    """
    held_out = options.pop("eval_data", None)
    names = {"data": _names(data), "eval_data": _names(held_out)}
    values = {"model": model or "", "task": task, "output": output, **names, **options}
    values |= {"method": method} if method is not None else {}
    if model is None and task != "pretrain":
        values["model"] = str(locate_model(None))
    in_memory = {} if held_out is None else {"eval_data": held_out}
    settings = TrainingSettings.of({**task_defaults(task, {**values, **in_memory}), **values})
    return run_training(settings, data, held_out, [_observer(item) for item in callbacks])


def run_training(
    settings: TrainingSettings, data: Any = None, held_out: Any = None, observers: Sequence[Observer] = ()
) -> TrainingResult:
    """Runs the training that `settings` describe; raises as `train` does.

    Args:
        data, held_out: rows in memory, if the settings do not name files.
    """
    data = _paths(settings.data) if data is None else data
    held_out = _paths(settings.eval_data) if held_out is None else held_out
    if data is None:
        raise ConfigError("there is no training data; set data to files, folders or rows")
    for name, table in (("task", TASKS), ("method", METHODS), ("optimizer", OPTIMIZERS)):
        _check_row(name, getattr(settings, name), table)
    check_task_options(settings)
    check_held_out(settings, held_out is not None)
    output = choose_output(settings)
    settings = settings.changed(output=str(output))
    with locked(output), _threads(settings.threads), kept_memory():
        command = command_line(settings, task_defaults(settings.task, settings.values()))
        return _Run(settings, output, data, held_out, report_observers(output, observers, command)).run()


def _paths(names: tuple[str, ...] | str | None) -> list[Path] | str | None:
    """Returns the files that settings name as paths: a missing one is an error, and never read as a text."""
    return list(map(Path, names)) if isinstance(names, tuple) else names


class _Run:
    """One run: everything that its loop needs, made from the settings."""

    def __init__(
        self, settings: TrainingSettings, output: Path, data: Any, held_out: Any, observers: Sequence[Observer]
    ) -> None:
        self.output, limits = output, read_limits(settings)
        read_cache_size(settings.activation_cache)  # an error before the data are read
        settings = earlier_choices(settings, output) if settings.resume else settings
        self.task: Task = TASKS[settings.task]()
        method = METHODS[settings.method]
        self.tokenizer = self.task.load_tokenizer(settings)
        self.observers = list(observers)
        self.task.progress = self._prepare
        examples = self.task.read(data, settings, self.tokenizer)
        subset, indices = self.task.hold_out(examples, settings)
        others = None if held_out is None else self.task.read_held_out(held_out, settings, self.tokenizer)
        self.digest = _combined_digest(examples, others)
        self.plan = plan_run(examples, subset, settings)
        self.held_out_count = len(indices) if others is None else len(others)
        with torch.random.fork_rng(devices=[]):  # the caller's random state does not change
            torch.manual_seed(settings.seed)
            model = self.task.load_model(settings, examples, settings.quantized or method.keep_quantized)
            virtual = method.virtual_tokens(settings, model.config)
            for item in (examples, *([] if others is None else [others])):
                check_context(item, virtual, model.config, settings)
            self.trainable = method.attach(model, self.tokenizer, settings)
        if settings.sample_prompts and model.head != "lm":
            raise ConfigError("sample_prompts is set, but a classifier writes no text; omit it")
        self.observers += [] if limits[1] is None else [TimeLimit(limits[1])]
        return_free_memory()
        forward = self._forward(settings)
        optimizer = OPTIMIZERS[settings.optimizer](self.trainable.parameters, settings)
        self.trainer = Trainer(self.task, self.trainable, forward, optimizer, self.tokenizer)
        measure = partial(measure_pass, self.trainer, self.plan)
        checkpointing = settings.gradient_checkpointing
        settings, self.estimate, choices = limited(settings, self.trainable, self.plan, self.held_out_count, measure)
        if settings.gradient_checkpointing != checkpointing:
            del forward, self.trainer.forward  # frees joined matrices before others are joined
            self.trainer.forward = forward = self._forward(settings)
        self.settings, self.plan = settings, plan_run(examples, subset, settings)
        hidden = model.config.hidden_size
        rate, note = _learning_rate(settings, method.learning_rate(hidden), hidden)
        self.notes = [*self.task.notes, note, f"forward pass: {forward.name}{note_of_products(model.dtype)}", *choices]
        self.notes += warmup_notes(settings, self.plan.steps)
        batches = partial(
            evaluation_batches, examples if others is None else others, indices if others is None else None, settings
        )
        self.loop = Loop(
            trainer=self.trainer,
            plan=self.plan,
            held_out=batches if self.held_out_count else None,
            settings=settings,
            rate=rate,
            store=CheckpointStore(output / CHECKPOINTS, settings.keep_last, settings.keep_steps),
            identity={"settings": _json_values(settings), "data": self.digest},
            observers=self.observers,
        )

    def _forward(self, settings: TrainingSettings) -> Forward:
        size = read_cache_size(settings.activation_cache)
        cache = None if size is None else ActivationCache(size, self.output)
        return forward_for(
            self.trainable, settings.forward, settings.gradient_checkpointing, settings.neftune_alpha, cache
        )

    def run(self) -> TrainingResult:
        if self.settings.resume:
            self._restore()
        start = self._start()
        if self.settings.overwrite and not self.settings.resume:
            remove_earlier_run(self.output)
        with atomic_write(self.output / SETTINGS) as file:
            file.write(settings_text(self.settings.changed(output=None, resume=False, overwrite=False)).encode())
        record = RunRecord(self.output, self._description(start))
        try:
            for observer in self.observers:
                observer.started(start)
            self.loop.run()
            with Interrupts():  # the result is saved completely, although Ctrl-C was pressed
                save_result(self.trainable, self.tokenizer, self.output)
        except BaseException as exc:
            raised = self._interruption() if type(exc) is KeyboardInterrupt else exc
            status = "interrupted" if isinstance(raised, TrainingInterrupted) else "failed"
            self.loop.store.release()  # space for the records, if the disk is full
            self._end(record, status, str(raised) or type(raised).__name__)
            raise raised  # noqa: B904 -- the cause of an interruption is known
        self._end(record, self.loop.reason)
        result = TrainingResult(
            list(self.loop.progress.losses), self._metrics(), self.output, self.settings, tuple(self.notes)
        )
        self.trainable.release()
        return result

    def _interruption(self) -> TrainingInterrupted:
        """Returns the description of a Ctrl-C outside the loop, which saves the state after the last step."""
        step, store = self.loop.progress.step, self.loop.store
        return TrainingInterrupted(step, store.path(step) if step in store.steps() else None)

    def _prepare(self, done: int, total: int) -> None:
        for observer in self.observers:
            observer.preparing(done, total, self.task.unit)

    def _restore(self) -> None:
        state, notes = self.loop.store.load_latest()
        self.notes += notes
        if state is None:
            self.notes.append("no complete state was found, so the run starts from its beginning")
            return
        check_same_run(state.record, _json_values(self.settings), self.digest)
        self.loop.restore(state)
        self.notes.append(f"continued after step {state.step}")

    def _start(self) -> Start:
        parameters = self.trainable.parameters
        model = self.trainable.model
        return Start(
            settings=self.settings,
            output=self.output,
            first_step=self.loop.progress.step,
            steps=self.plan.steps,
            examples=self.plan.count,
            held_out=self.held_out_count,
            trained=sum(item.numel() for item in parameters.values()),
            frozen=sum(item.numel() for item in model.parameters() if not item.requires_grad),
            learning_rate=self.loop.rate,
            estimated_seconds=self.estimate.seconds,
            estimated_memory=self.estimate.memory,
            notes=tuple(self.notes),
        )

    def _description(self, start: Start) -> dict[str, Any]:
        return {
            "task": self.settings.task,
            "method": self.settings.method,
            "model": self.settings.model,
            "steps": start.steps,
            "step": start.first_step,
            "learning_rate": start.learning_rate,
            "trained": start.trained,
            "frozen": start.frozen,
            "data": {"digest": self.digest, "examples": start.examples, "held_out": start.held_out},
            "settings": _json_values(self.settings),
            "notes": list(start.notes),
        }

    def _metrics(self) -> dict[str, Any]:
        progress = self.loop.progress
        return dict((progress.best if self.settings.keep_best else progress.evaluated)[1])

    def _end(self, record: RunRecord, status: str, message: str = "") -> None:
        losses, metrics = self.loop.progress.losses, self._metrics()
        event = End(len(losses), status, message, metrics)
        try:
            record.end(status, step=len(losses), loss=losses[-1] if losses else None, metrics=metrics, message=message)
        except OSError:  # the disk is full; an earlier error is being raised, or the next write fails as well
            if status in ("finished", "stopped"):
                raise
        with Interrupts() as interrupts, interrupts.ignored():  # complete reports, although Ctrl-C was pressed
            for observer in self.observers:
                observer.ended(event)


def save_result(trainable: Trainable, tokenizer: Any, output: Path) -> None:
    """Saves the adapter, or the model with its tokenizer."""
    adapter = trainable.adapter()
    if adapter is not None:
        save_adapter(adapter, output)
        return
    trainable.model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def _learning_rate(settings: TrainingSettings, automatic: float, hidden: int) -> tuple[float, str]:
    if settings.learning_rate == "auto":
        return (
            automatic,
            f"learning rate: auto is {automatic:.3g} for {settings.method} and hidden size {hidden} {_FORMULA}",
        )
    return settings.learning_rate, f"learning rate: {settings.learning_rate:g}"


def _json_values(settings: TrainingSettings) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(settings.values()))
    return values


def _combined_digest(examples: Examples, held_out: Examples | None) -> str:
    text = examples.digest() + ("" if held_out is None else f" {held_out.digest()}")
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check_row(name: str, value: str, table: Mapping[str, Any]) -> None:
    if value not in table:
        raise ConfigError(f"{name} is {show(value)}; it must be one of {', '.join(table)}{suggestion(value, table)}")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _names(data: Any) -> str | list[str] | None:
    """Returns the paths or names of data for the settings; None for rows and texts in memory."""
    if isinstance(data, str | PathLike):
        return str(data)
    return [str(item) for item in data] if isinstance(data, list | tuple) and are_paths(data) else None


class _Function(Observer):
    """Calls a function with each step and evaluation as a dictionary."""

    def __init__(self, function: Callable[[dict[str, Any]], Any]) -> None:
        self._function = function

    def stepped(self, event: StepEvent) -> bool:
        return self._function({**vars(event)}) is True

    def evaluated(self, event: EvaluationEvent) -> bool:
        return (
            self._function({"step": event.step, **{f"eval_{name}": item for name, item in event.metrics.items()}})
            is True
        )


def _observer(callback: Callback) -> Observer:
    if not isinstance(callback, Observer) and not callable(callback):
        raise ArgumentError(f"a callback is {show(callback)}; it must be an Observer or a function")
    return callback if isinstance(callback, Observer) else _Function(callback)
