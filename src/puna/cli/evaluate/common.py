"""Options and output that the commands of `puna eval` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from puna.cli import options
from puna.cli.terminal import is_watched, print_json, stderr_console

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="JSONL, JSON, CSV or Parquet file, folder, or owner/name on the hub.")
]
Limit = Annotated[int | None, options.number("--limit", low=1, help="Number of rows to read. [default: all]")]


def column_option(name: str, kind: str) -> Any:
    """Returns an option with the user's name of a column."""
    return typer.Option(f"--{name}-column", metavar="NAME", help=f"Column with the {kind}. [default: recognised]")


def columns_of(**names: str | None) -> dict[str, str]:
    """Returns the names of the columns that are given."""
    return {kind: name for kind, name in names.items() if name is not None}


@contextmanager
def progress(total: int, text: str) -> Iterator[Callable[[int], None]]:
    """Context manager: shows a progress bar in a terminal; yields the function that advances it."""
    from rich.progress import Progress

    with Progress(console=stderr_console(), transient=True, disable=not is_watched()) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)


def show_metrics(metrics: Mapping[str, Any], json: bool, hidden: Sequence[str] = ()) -> None:
    """Prints the numbers of an evaluation, one per line, or all metrics as JSON."""
    if json:
        print_json(dict(metrics))
        return
    rows = {name: value for name, value in metrics.items() if isinstance(value, int | float) and name not in hidden}
    width = max(map(len, rows))
    for name, value in rows.items():
        number = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
        error = metrics.get(f"{name}_stderr")
        typer.echo(f"{name:{width}}  {number}" + ("" if error is None else f" ± {error:.4f}"))


def existing_text(path: Path) -> bool:
    """Whether a path is a text file, which is one document, and not a table of rows."""
    from puna.files.data_files import data_format

    return path.is_file() and data_format(path.name) in (None, "text")
