"""The observers of every run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from puna.errors import PunaError
from puna.training.events import End, Observer
from puna.training.report.html import write_report
from puna.training.report.recorder import MetricsWriter
from puna.training.report.tensorboard import TensorBoardWriter


def report_observers(folder: Path, others: Sequence[Observer] = (), command: str = "") -> list[Observer]:
    """Returns the observers that write metrics.jsonl, TensorBoard's files and report.html into the folder of a result.

    Args:
        others: further observers. They receive an event after metrics.jsonl has it, and before the report is written.
        command: the command line that repeats the run, for the report.
    """
    return [MetricsWriter(folder), TensorBoardWriter(folder), *others, ReportWriter(folder, command)]


class ReportWriter(Observer):
    """Writes report.html when a run ends, for any reason. A failure is a warning: the result is complete without it."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command

    def ended(self, event: End) -> None:
        """Writes the report."""
        try:
            write_report(self._folder, self._command)
        except (PunaError, OSError) as exc:
            warnings.warn(f"report.html was not written: {exc}", stacklevel=2)
