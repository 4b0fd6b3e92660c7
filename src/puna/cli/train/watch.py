"""`puna train watch`: the progress of a run of another process, live."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, print_json
from puna.cli.train.lines import step_line
from puna.errors import RequestError
from puna.training.report.metrics import METRICS_FILE, MetricsReader
from puna.training.report.snapshot import Snapshot


@command(
    {
        "puna train watch runs/spam": "until the run ends",
        "puna train watch runs/spam --once --json": "print the state once",
    },
    {
        "status": "running, finished, stopped, interrupted, failed, or killed (the process ended without a message)",
        "step, steps, epoch": "number of completed steps, of all steps, and of passes over the data",
        "loss, first_loss": "mean loss of the last 20 steps, and loss of the first step",
        "learning_rate, gradient_norm": "of the last step",
        "tokens, seconds": "number of tokens and time of all steps",
        "tokens_per_second": "mean of the last 20 steps",
        "memory, peak_memory": "bytes of the process, now and at most",
        "left": "estimated seconds until the end; null if unknown",
        "evaluation": "metrics of the last evaluation",
    },
)
def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the result of a run.")],
    interval: Annotated[float, options.number(kind=float, low=0.1, help="Seconds between two readings.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show the state once, and end.")] = False,
    json: options.Json = False,
) -> None:
    """Show the progress of a run of another process, live.

    The command ends with the run. It reads only metrics.jsonl and can be started and stopped at any time.
    """
    from rich.console import Console
    from rich.live import Live

    from puna.cli.train.view import draw_page

    reader = MetricsReader(folder)
    if reader.update().status == "empty":
        raise RequestError(
            f"{folder} has no {METRICS_FILE} with a run; give the folder of a result; puna train runs lists them"
        )
    console = Console(highlight=False)
    if json or (not console.is_terminal and not once):
        _follow(reader, interval, once=once, json=json)
    elif once:
        console.print(draw_page(reader.metrics, str(folder)))
    else:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(draw_page(reader.update(), str(folder)), refresh=True)
                if reader.metrics.status != "running":
                    return
                time.sleep(interval)


def _follow(reader: MetricsReader, interval: float, *, once: bool, json: bool) -> None:
    """Prints a line for each reading with new steps, until the run ends."""
    previous: Snapshot | None = None
    while True:
        state = Snapshot.of(reader.update())
        if previous is None or (state.step, state.status) != (previous.step, previous.status):
            print_json(dataclasses.asdict(state)) if json else typer.echo(f"{step_line(state)}  {state.status}")
        previous = state
        if once or state.status != "running":
            return
        time.sleep(interval)
