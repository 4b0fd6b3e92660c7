"""The common part of `puna train sft`, `classify`, `pretrain` and `resume`: settings, run, result."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli.models import expand, locate, similar_models
from puna.cli.terminal import INTERRUPTED, note, print_json, usage_errors
from puna.cli.train.display import Display, estimate_line
from puna.cli.train.options import read_flags, without_environment
from puna.errors import ConfigError, MissingExtraError, printable, show_bytes
from puna.training.report.durations import show_seconds
from puna.training.report.snapshot import Snapshot
from puna.training.settings import TrainingSettings, check_held_out, read_settings, settings_text, task_defaults

if TYPE_CHECKING:
    from puna.training.api import TrainingResult

Config = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG.toml]", help="File of settings, such as the training.toml of an earlier run."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the settings as TOML, and end without training.")
]

FIELDS = {
    "path": "folder of the result: the adapter or model, training.toml, report.html, metrics.jsonl, checkpoints",
    "status": "finished, or stopped: before the last step, by early stopping",
    "steps": "number of completed steps",
    "loss": "mean training loss of the last 20 steps",
    "losses": "training loss of each step",
    "metrics": "metrics of the held-out data; empty without such data",
    "tokens": "number of tokens of all steps",
    "tokens_per_second": "mean speed of the steps",
    "seconds": "time of the steps",
    "peak_memory_bytes": "maximum memory of the process",
    "notes": "what the run chose, such as the learning rate",
}


def train(task: str, config: Path | None, values: Mapping[str, Any], *, print_config: bool, json: bool) -> None:
    """Trains as the file of settings and the options of the command line say; the options override the file."""
    settings = _settings(task, config, values)
    if print_config:
        typer.echo(settings_text(settings), nl=False)
        return
    if settings.data is None:
        raise typer.BadParameter("give the training data with --data, or in CONFIG.toml", param_hint="--data")
    run(_located(settings), json=json)


def _settings(task: str, config: Path | None, values: Mapping[str, Any]) -> TrainingSettings:
    flags = read_flags(values)
    with usage_errors("CONFIG.toml"):
        file = {} if config is None else read_settings(config)
    other = file.get("task", task)
    if other != task:
        raise typer.BadParameter(f"{config} is for the task {other}; run: puna train {other} {config}")
    _require_torch()
    values = {**file, **without_environment(flags, file), "task": task}
    with usage_errors():
        settings = TrainingSettings.of({**task_defaults(task, values), **values})
        check_held_out(settings, settings.eval_data is not None)
    return settings


def _require_torch() -> None:
    """Raises an error that names the extra if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("puna train needs PyTorch, which is not installed: pip install 'puna[torch]'")


def _located(settings: TrainingSettings) -> TrainingSettings:
    """Returns the settings with the path of the model if they have a part of its name, or none."""
    if settings.from_config is not None:
        return settings
    if not settings.model:  # pretraining then starts from random weights
        return settings if settings.task == "pretrain" else settings.changed(model=str(locate(None)))
    with similar_models(settings.model):
        return settings.changed(model=str(expand(settings.model)))


def run(settings: TrainingSettings, *, json: bool) -> None:
    """Trains and prints the result."""
    from puna.training.api import run_training
    from puna.training.safety import TrainingInterrupted

    with Display() as display, similar_models(settings.model):
        try:
            result = run_training(settings, observers=[display])
        except TrainingInterrupted as exc:
            _explain_interrupt(exc.step, exc.path, display)
            raise typer.Exit(INTERRUPTED) from None
    state = Snapshot.of(display.metrics)
    if json:
        print_json(_json_fields(result, state))
        return
    for line in _summary(result, state, estimate_line(display.metrics)):
        note(line)
    typer.echo(printable(str(result.path)))


def _explain_interrupt(step: int, saved: Path | None, display: Display) -> None:
    output = display.metrics.start.get("output", "")
    note(f"puna: interrupted after step {step:,}")
    if saved is not None:
        note(f"The state is saved in {saved}. Continue with:\n  puna train resume {shlex.quote(str(output))}")
    else:
        note("The state was not saved.")


def _json_fields(result: TrainingResult, state: Snapshot) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "status": state.status,
        "steps": len(result.losses),
        "loss": state.loss,
        "losses": result.losses,
        "metrics": result.metrics,
        "tokens": state.tokens,
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "seconds": round(state.seconds, 3),
        "peak_memory_bytes": state.peak_memory,
        "notes": list(result.notes),
    }


def _summary(result: TrainingResult, state: Snapshot, estimate: str) -> list[str]:
    """Returns the result in words, and the commands with which it can be tried."""
    lines = []
    if state.first_loss is not None and state.loss is not None:
        lines.append(f"loss      {state.first_loss:.4f} -> {state.loss:.4f} in {len(result.losses):,} steps")
    if state.seconds:
        speed = state.tokens / state.seconds
        memory = show_bytes(state.peak_memory or 0)
        lines.append(f"speed     {speed:,.0f} tok/s for {show_seconds(state.seconds)}, with at most {memory} of memory")
    if estimate:
        lines.append(f"estimate  {estimate}")
    lines.append(f"report    {result.path / 'report.html'}")
    lines.append("Try it:")
    return [*map(printable, lines), *(f"  {line}" for line in commands(result.settings, result.path))]


def commands(settings: TrainingSettings, path: Path) -> list[str]:
    """Returns the commands that use a result."""
    folder = shlex.quote(str(path))
    is_classifier = settings.task == "classify"
    text = "classify" if is_classifier else "generate"
    prompt = '"A text"' if is_classifier else '"Once upon a time"'
    if not (path / "adapter_config.json").exists():
        return [f"puna {text} -m {folder} {prompt}", f"puna serve {folder}"]
    model = shlex.quote(settings.model)
    name = shlex.quote(f"{path.name}={path}")
    return [
        f"puna {text} -m {model} --adapter {folder} {prompt}",
        f"puna serve {model} --adapter {name}",
        f"puna merge {model} {folder} {shlex.quote(str(path.with_name(path.name + '-merged')))}",
    ]


def resume(folder: Path, *, json: bool) -> None:
    """Continues the run in a folder with its own settings."""
    file = folder / "training.toml"
    if not file.exists():
        raise ConfigError(
            f"{folder} has no training.toml, so that there is no run to resume; give the folder of a result, or list "
            "them with: puna train runs"
        )
    _require_torch()
    run(TrainingSettings.of({**read_settings(file), "output": str(folder), "resume": True}), json=json)
