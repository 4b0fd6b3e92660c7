"""`puna train runs`: the runs in a folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import options
from puna.cli.terminal import command, note, print_json
from puna.cli.train.lines import metrics_text
from puna.errors import ModelNotFoundError, printable
from puna.training.report.charts import sparkline
from puna.training.report.durations import show_seconds
from puna.training.report.snapshot import Run, Snapshot, find_runs

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 200
"""Columns of the table if standard output is not a terminal; a narrower table ends long texts with an ellipsis."""

_SHOWN_ELSEWHERE = ("model", "data", "task", "method", "output")
"""Settings that are not in the column of changed settings."""


@command(
    {
        "puna train runs": "the runs in the folder runs",
        "puna train runs experiments --json": "another folder, as JSON",
    },
    {"runs": "list with path, status, task, method, model, settings, step, steps, loss, metrics, seconds, started"},
)
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of the results.")] = Path("runs"),
    json: options.Json = False,
) -> None:
    """List the runs in a folder: status, loss, settings and result of each.

    The latest run is the first. Settings are those that differ from their defaults.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is not a folder; give the folder of your results")
    found = find_runs(folder)
    if json:
        print_json({"runs": [_fields(run) for run in found]})
        return
    if not found:
        note(f"There are no runs in {folder}. Start one with: puna train sft --data FILE")
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    Console(highlight=False, width=width).print(_table(found, folder))


def _fields(run: Run) -> dict[str, Any]:
    state = Snapshot.of(run.metrics)
    settings = run.settings
    return {
        "path": str(run.path),
        "status": state.status,
        "task": settings.get("task", "sft"),
        "method": settings.get("method", "lora"),
        "model": settings.get("model", ""),
        "settings": settings,
        "step": state.step,
        "steps": state.steps,
        "loss": state.loss,
        "metrics": state.evaluation,
        "seconds": round(state.seconds, 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.begin)),
    }


def _table(found: list[Run], folder: Path) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("run", "status", "what", "steps", "loss", "", "held-out", "settings", "time"):
        is_long = name in ("what", "held-out", "settings")
        table.add_column(name, overflow="ellipsis" if is_long else "fold", no_wrap=is_long or name != "run")
    for run in found:
        fields = _fields(run)
        changed = " ".join(f"{key}={value}" for key, value in run.settings.items() if key not in _SHOWN_ELSEWHERE)
        cells = [
            str(run.path.relative_to(folder)) if run.path != folder else str(folder),
            fields["status"],
            f"{fields['task']} {fields['method']} {Path(str(fields['model'])).name}",
            f"{fields['step']:,}/{fields['steps']:,}",
            "" if fields["loss"] is None else f"{fields['loss']:.4f}",
            sparkline(run.metrics.losses, 8),
            metrics_text({name: fields["metrics"][name] for name in list(fields["metrics"])[:2]}),
            changed,
            show_seconds(fields["seconds"]),
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
