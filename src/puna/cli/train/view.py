"""The drawing of a run in a terminal: a bar, the latest numbers, and the course of the loss."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from puna.cli.train.lines import metrics_text, numbers
from puna.errors import printable
from puna.training.report.charts import sparkline
from puna.training.report.durations import show_seconds
from puna.training.report.metrics import Metrics
from puna.training.report.snapshot import Snapshot

_BAR = 32
_COURSE = 48
"""Columns of the progress bar and of the course of the loss; with the labels, both fit in 80 columns."""

_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "killed": "red"}


def draw(metrics: Metrics) -> RenderableType:
    """Returns the drawing of a run that is in progress."""
    state = Snapshot.of(metrics)
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, state.steps), completed=state.step, width=_BAR)
    left = "" if state.left is None else f"{show_seconds(state.left)} left"
    head.add_row(f"[bold]step {state.step:,} of {state.steps:,}[/]", bar, f"epoch {state.epoch:.2f}", left)
    rows = Table.grid(padding=(0, 2))
    others = [part for part in numbers(state) if not part.endswith(" left")]
    rows.add_row("[dim]now[/]", "  ".join(others))
    if course := sparkline(metrics.losses, _COURSE):
        rows.add_row("[dim]loss[/]", f"[cyan]{course}[/]")
    if state.evaluation:
        rows.add_row("[dim]held-out[/]", metrics_text(state.evaluation))
    return Group(head, rows)


def draw_page(metrics: Metrics, title: str) -> RenderableType:
    """Returns the drawing for `puna train watch`: also the status, the evaluations and the latest samples."""
    state = Snapshot.of(metrics)
    colour = _COLOURS.get(state.status, "yellow")
    message = printable(str((metrics.end or {}).get("message") or ""))
    parts: list[RenderableType] = [
        Text.assemble((printable(title), "bold"), "  ", (state.status, colour), f"  {message}" if message else ""),
        draw(metrics),
    ]
    if metrics.evaluations:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("step", "held-out data", ""):
            table.add_column(name)
        for item in metrics.evaluations[-5:]:
            table.add_row(f"{item['step']:,}", metrics_text(item["metrics"]), "best" if item.get("best") else "")
        parts += ["", table]
    if metrics.samples:
        latest = metrics.samples[-1]
        parts.append("")
        for prompt, text in zip(latest["prompts"], latest["texts"], strict=False):
            parts.append(f"[dim]{escape(printable(str(prompt)))}[/] {escape(printable(str(text)))}")
    return Group(*parts)
