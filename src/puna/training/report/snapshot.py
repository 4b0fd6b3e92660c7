"""The state of a run in a few numbers, for progress displays and lists of runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.training.report.metrics import METRICS_FILE, Metrics, MetricsReader, Record

_RECENT = 20
"""Steps whose mean loss and speed are shown: single steps vary too much to be compared."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run.

    Attributes:
        status: see `Metrics.status`.
        step, steps: number of completed steps, and of all.
        epoch: passes over the data so far.
        loss: mean of the last 20 steps; None before the first.
        first_loss: of the first step.
        learning_rate, gradient_norm: of the last step.
        tokens: number of tokens of all steps.
        tokens_per_second: mean of the last 20 steps.
        memory, peak_memory: bytes of the process, now and at most.
        seconds: time of all steps.
        left: estimated seconds until the end, with evaluations; None before the second step.
        evaluation: the metrics of the last evaluation.
    """

    status: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    first_loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    tokens: int = 0
    tokens_per_second: float | None = None
    memory: int | None = None
    peak_memory: int | None = None
    seconds: float = 0.0
    left: float | None = None
    evaluation: Record = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: Metrics) -> Snapshot:
        """Returns the state after the latest record."""
        total = int(metrics.start.get("steps") or 0)
        evaluation = metrics.evaluations[-1].get("metrics", {}) if metrics.evaluations else {}
        if not metrics.steps:
            return cls(metrics.status, int(metrics.start.get("first_step") or 0), total, evaluation=evaluation)
        last, recent = metrics.steps[-1], metrics.steps[-_RECENT:]
        losses = [item["loss"] for item in recent if item.get("loss") is not None]
        seconds = sum(item["seconds"] for item in recent)
        return cls(
            metrics.status,
            last["step"],
            total,
            last["epoch"],
            sum(losses) / len(losses) if losses else None,
            metrics.losses[0] if metrics.losses else None,
            last["learning_rate"],
            last["gradient_norm"],
            sum(item["tokens"] for item in metrics.steps),
            sum(item["tokens"] for item in recent) / seconds if seconds else None,
            last.get("memory"),
            max(item.get("peak_memory") or 0 for item in metrics.steps) or None,
            sum(item["seconds"] for item in metrics.steps),
            _seconds_left(metrics, total),
            evaluation,
        )


def _seconds_left(metrics: Metrics, total: int) -> float | None:
    """Returns the remaining time at the mean speed of this process, with its evaluations and saves."""
    own = [item for item in metrics.steps if item["step"] > int(metrics.start.get("first_step") or 0)]
    if metrics.end is not None or len(own) < 2:
        return None
    each = (own[-1]["elapsed"] - own[0]["elapsed"]) / (len(own) - 1)
    return float(each * max(0, total - own[-1]["step"]))


@dataclass(frozen=True)
class Run:
    """A run in a list of runs.

    Attributes:
        path: the folder of its result.
        metrics: its events.
    """

    path: Path
    metrics: Metrics

    @property
    def settings(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        settings = self.metrics.start.get("settings")
        return settings if isinstance(settings, dict) else {}

    @property
    def begin(self) -> float:
        """Seconds since 1970."""
        return float(self.metrics.start.get("time") or 0.0)


_DEPTH = 4
"""Folders below the given one in which runs are searched."""


def find_runs(folder: Path) -> list[Run]:
    """Returns the runs in a folder and the folders below it, the latest first."""
    patterns = ("/".join([*["*"] * depth, METRICS_FILE]) for depth in range(_DEPTH))
    paths = {path.parent for pattern in patterns for path in folder.glob(pattern)}
    runs = [Run(path, MetricsReader(path).update()) for path in sorted(paths)]
    return sorted((run for run in runs if run.metrics.start), key=lambda run: run.begin, reverse=True)
