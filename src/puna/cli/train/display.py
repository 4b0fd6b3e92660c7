"""The progress of a run on standard error: drawn on a terminal, a few lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from puna.cli.terminal import is_quiet, is_watched, note, stderr_console
from puna.cli.train.lines import metrics_text, step_line
from puna.errors import show_bytes
from puna.training.events import Start
from puna.training.report.durations import show_seconds
from puna.training.report.metrics import Metrics, Record
from puna.training.report.recorder import Recorder
from puna.training.report.snapshot import Snapshot

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Progress

_LINES = 20
"""Lines of progress of a complete run, if standard error is not a terminal."""

_STOPPING = "Stopping after this step; press Ctrl-C again to stop at once."


class Display(Recorder):
    """Shows the events of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = Metrics()
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._tenths = 0
        self._stops = False

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def preparing(self, done: int, total: int, unit: str) -> None:
        """Shows the share of the data that is tokenised: a bar, or a line for each tenth but the last."""
        if is_watched():
            if self._bar is None:
                from rich.progress import Progress

                self._bar = Progress(console=stderr_console(), transient=True)
                self._bar.start()
                self._bar.add_task("Tokenising")
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
            return
        tenths = 10 * done // max(1, total)
        if self._tenths != tenths and 0 < tenths < 10:
            note(f"{tenths * 10}% of the data tokenised ({total:,} {unit})")
        self._tenths = tenths

    def started(self, event: Start) -> None:
        """Prints the description of the run."""
        self._stop()
        super().started(event)
        self._describe(event)
        if is_watched():
            from rich.live import Live

            self._live = Live(console=stderr_console(), get_renderable=self._draw, refresh_per_second=4)
            self._live.start()

    def add(self, record: Record) -> None:
        """Shows a record."""
        self.metrics.add(record)
        kind = record["kind"]
        if kind == "evaluation":
            best = ", the best so far" if record["best"] else ""
            self._print(f"held-out data after step {record['step']:,}: {metrics_text(record['metrics'])}{best}")
        elif kind == "step" and self._live is None and self._is_shown(record["step"]):
            note(step_line(Snapshot.of(self.metrics)))
        elif kind == "end":
            self._stop()

    def stopping(self) -> None:
        """Says that the current step is completed first."""
        if self._live is None:
            with suppress(RuntimeError):  # the signal interrupted the printing of another line
                note(_STOPPING)
        self._stops = True  # drawn by the thread of the display

    def interrupted(self, step: int) -> bool:
        """Asks whether the state is saved, if there is somebody to answer; saves it otherwise."""
        self._stop()
        if is_quiet() or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return True
        import typer

        handler = signal.getsignal(signal.SIGINT)

        def end_question(*_: object) -> None:
            signal.signal(signal.SIGINT, handler)  # further signals are counted again
            raise KeyboardInterrupt

        question = f"Save the state after step {step:,}, to resume the run later?"
        try:
            signal.signal(signal.SIGINT, end_question)
            answer = typer.confirm(question, default=True, err=True)
            signal.signal(signal.SIGINT, handler)
        except (typer.Abort, EOFError, KeyboardInterrupt):
            typer.echo(err=True)  # what follows starts a line
            return True
        finally:
            signal.signal(signal.SIGINT, handler)
        return answer

    def _draw(self) -> RenderableType:
        from rich.console import Group

        from puna.cli.train.view import draw

        return Group(draw(self.metrics), _STOPPING) if self._stops else draw(self.metrics)

    def _describe(self, event: Start) -> None:
        held_out = f", {event.held_out:,} held out" if event.held_out else ""
        self._print(f"{event.examples:,} documents{held_out}; {event.steps:,} steps")
        share = event.trained / max(1, event.trained + event.frozen)
        self._print(f"trains {event.trained:,} parameters ({share:.2%}) of {event.settings.model or 'a new model'}")
        for text in event.notes:
            self._print(text)

    def _is_shown(self, step: int) -> bool:
        total = max(1, int(self.metrics.start.get("steps") or 1))
        every = max(1, round(total / _LINES))
        return step % every == 0 or step in (1, total)

    def _print(self, text: str) -> None:
        if self._live is None:
            note(text)
        else:
            self._live.console.print(text, markup=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._live is not None:
            self._live.stop()
            self._live = None


def estimate_line(metrics: Metrics) -> str:
    """Returns how good the estimate of time and memory was; "" without an estimate."""
    expected, memory = metrics.start.get("estimated_seconds"), metrics.start.get("estimated_memory")
    state = Snapshot.of(metrics)
    if not expected or not memory or not state.seconds or state.peak_memory is None:
        return ""
    expected *= len(metrics.steps) / max(1, state.steps)
    return (
        f"estimated {show_seconds(expected)} and {show_bytes(memory)}; "
        f"measured {show_seconds(state.seconds)} and {show_bytes(state.peak_memory)}"
    )
