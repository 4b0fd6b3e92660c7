"""Shows the plan and the progress of a conversion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from puna.cli.terminal import is_watched, note, stderr_console
from puna.errors import show_bytes

if TYPE_CHECKING:
    from rich.progress import Progress

    from puna.convert import Plan


class Display:
    """Shows a progress bar if standard error is a terminal, else a line for each step.

    Its methods are callbacks of `puna.convert`.

    Args:
        verify: whether the result is read back.
        show_plan: whether the plan is printed.
    """

    def __init__(self, *, verify: bool, show_plan: bool) -> None:
        self._passes = 2 if verify else 1
        self._show_plan = show_plan
        self._bar: Progress | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_plan(self, plan: Plan) -> None:
        """Prints the plan, and starts the progress bar below it."""
        if self._show_plan:
            for line in _plan_lines(plan):
                note(line)
        if is_watched():
            self._bar = _progress_bar()
            self._bar.add_task("Converting", total=plan.bytes * self._passes)
            self._bar.start()

    def advance(self, count: int) -> None:
        """Adds bytes that were written or read back."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], count)

    def on_calibration(self, share: float) -> None:
        """Shows how much of the calibration text was read."""
        self._describe(f"Reading the calibration text, {share:.0%}")

    def on_step(self, step: str) -> None:
        """Shows the step that begins."""
        self._describe(step)
        if self._bar is None and self._show_plan:
            note(f"{step} ...")

    def _describe(self, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=text)


def _progress_bar() -> Progress:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=stderr_console(), transient=True)


def _plan_lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.source} ({plan.kind}) -> {plan.target} ({plan.layout})"
    before, after = _format_counts(plan.before), _format_counts(plan.formats)
    yield f"tensors    {before}" + (f" -> {after}" if before != after else "")
    names = [file["name"] for file in plan.files]
    shown = ", ".join(names if len(names) < 4 else [names[0], "...", names[-1]])
    yield f"writes     {show_bytes(plan.bytes)} in {len(names)} file(s): {shown}"
    if plan.fallbacks:
        kinds = ", ".join(sorted(set(plan.fallbacks.values())))
        yield f"fallbacks  {len(plan.fallbacks)} matrices get {kinds}: their rows do not fit other formats (see --json)"
        yield f"{'':<10} the file may be larger than the source"
    if plan.finished:
        yield f"finished   {show_bytes(plan.finished)} by an earlier run, which this one resumes"
    yield f"disk       {show_bytes(plan.free)} free"
    yield f"memory     about {show_bytes(plan.memory)}"
    for text in plan.notes:
        yield f"note       {text}"


def _format_counts(formats: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(formats.items(), key=lambda item: -item[1]))


def nll_line(nll: dict[str, float]) -> str:
    """Returns the change in negative log-likelihood, for the report."""
    change = nll["after"] - nll["before"]
    return (
        f"NLL        {nll['before']:.4f} -> {nll['after']:.4f} nats per token ({change:+.4f}, "
        f"{change / nll['before']:+.2%}) on {nll['tokens']:.0f} tokens"
    )
