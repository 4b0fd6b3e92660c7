"""`puna train preview`: what a model will see of its training data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli import options
from puna.cli.models import locate
from puna.cli.terminal import command, from_command_line, is_watched, print_json, stderr_console, usage_errors
from puna.errors import DataError, RequestError, printable, show

if TYPE_CHECKING:
    from rich.console import Console

    from puna.tokenizer import PreTrainedTokenizerBase
    from puna.training.data.preview import Preview, Sample
    from puna.training.data.read import DataOptions

_BAR = 40
"""Width of the longest bar of the histogram, in characters."""

_MAX_BAD_ROWS = 50
"""Messages of bad rows that are printed; --json prints all."""


_MAX_LABELS = 20
"""Labels that are printed; --json prints all."""


@command(
    {
        "puna train preview chats.jsonl": "the first examples, the learned tokens in green, and lengths",
        "puna train preview qa.csv --columns prompt=question --columns completion=answer": "other names of columns",
        "puna train preview owner/name -m model.gguf --max-length 512 -n 10": "a data set of the hub",
        "puna train preview run.toml": "the data of a file of settings, with its task, model and options",
    },
    {
        "task": "sft or classify",
        "labels": "number of texts of each label; empty for sft",
        "format": "format of the rows: chat, sharegpt, prompt, alpaca, text or classification",
        "rows": "number of rows",
        "examples": "number of examples",
        "tokens": "number of tokens of all examples",
        "learned": "number of tokens that are learned",
        "truncated": "number of rows of which tokens are removed",
        "removed": "number of these tokens",
        "lengths": "numbers of rows by tokens: lists of the shortest, the longest and the number",
        "bad_rows": "for each row that cannot be used: the file, the line and the remedy",
        "notes": "other remarks on the data",
        "samples": "the first examples: source, text, ids, and the weight of each token in the loss",
    },
)
def preview(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Files, folders, or owner/name of a data set on the hub; or one file of settings (.toml).",
        ),
    ],
    model: options.Model = None,
    count: Annotated[int, options.number("-n", "--count", low=0, high=1000, help="Number of examples to show.")] = 3,
    task: Annotated[
        Literal["auto", "sft", "classify"],
        typer.Option(help="What is trained; auto: classify if a column has the name of a label."),
    ] = "auto",
    format: Annotated[str, typer.Option(metavar="NAME", help="chat, sharegpt, prompt, alpaca, text or auto.")] = "auto",
    columns: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COLUMN", help="Name of a column of yours; repeat for several.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Part of a folder or hub data set.")] = "train",
    max_length: Annotated[int, options.number(low=2, high=2**24, help="Tokens of an example at most.")] = 1024,
    truncate: Annotated[
        Literal["end", "start", "split", "error"],
        typer.Option(help="Part of a longer document that is removed; split makes several examples of it."),
    ] = "end",
    prompt_loss_weight: Annotated[
        float, options.number(kind=float, low=0, help="Weight of the loss of tokens that are not answers.")
    ] = 0.0,
    json: options.Json = False,
) -> None:
    """Show what a model will see of its training data: text, learned tokens, lengths, bad rows.

    Learned text is green, or yellow after a weight other than 1; without colours it is between [[ and ]].
    """
    from puna.tokenizer import load_tokenizer
    from puna.training.data.read import DataOptions

    with usage_errors("--columns"):
        names = _columns(columns or [])
    values: dict[str, Any] = {
        "format": format, "columns": names, "split": split, "max_length": max_length, "truncate": truncate,
        "prompt_loss_weight": prompt_loss_weight,
    }  # fmt: skip
    chosen: str = task
    column, labelling = "", {}
    if len(data) == 1 and data[0].endswith(".toml"):
        file, data = _settings(Path(data[0]))
        values |= {"model": model, "task": task}
        file |= {name: values[name] for name in values.keys() & from_command_line}
        model, chosen = file["model"] or model, file["task"]
        values = {name: file[name] for name in values if name not in ("model", "task")}
        labelling = {name: file[name] for name in ("labels", "problem")}
    data_options = DataOptions(**values, bad_rows="skip")
    tokenizer = load_tokenizer(locate(model, "tokenizer"))
    if chosen == "auto":
        chosen, column = _task(data, data_options)
    try:
        result, labels = _read(data, tokenizer, data_options, count, chosen, labelling)
    except DataError as exc:
        if not column:
            raise
        raise DataError(
            f"{exc}. The column {show(column)} seems to have labels; --task sft shows the texts alone"
        ) from exc
    if json:
        print_json({"task": chosen, "labels": labels, **_json_fields(result, tokenizer, max_length)})
    else:
        _print(result, data, max_length)
        _print_labels(labels, column)
    if not result.report.examples:
        raise typer.Exit(1)


def _settings(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Returns the settings in a file, with the defaults of its task, and its data."""
    from puna.training.settings import TrainingSettings, read_settings, task_defaults

    with usage_errors("DATA"):
        file = read_settings(path)
        task = file.get("task", "sft")
        settings = TrainingSettings.of({**task_defaults(task, file), **file})
    if task not in ("sft", "classify"):
        raise RequestError(f"{path} is for the task {task}; the preview shows the data of sft and classify")
    if settings.data is None:
        raise RequestError(f"{path} names no data; set data in the file, or give the files of the data instead")
    data = [settings.data] if isinstance(settings.data, str) else list(settings.data)
    return {**settings.values(), "model": settings.model or None}, data


def _columns(items: list[str]) -> dict[str, str]:
    columns = {}
    for item in items:
        name, equals, column = item.partition("=")
        if not equals or not name or not column:
            raise RequestError(f"{show(item)} is not NAME=COLUMN; write for example prompt=question")
        columns[name] = column
    return columns


def _task(data: list[str], options: DataOptions) -> tuple[str, str]:
    from puna.training.tasks.labelled_preview import detect_task

    return detect_task(data[0] if len(data) == 1 else list(map(Path, data)), options)


def _read(
    data: list[str],
    tokenizer: PreTrainedTokenizerBase,
    options: DataOptions,
    count: int,
    task: str,
    labelling: dict[str, Any],
) -> tuple[Preview, dict[str, int]]:
    """Returns the preview, and the number of texts of each label."""
    from rich.progress import Progress

    from puna.training.data.preview import preview
    from puna.training.tasks.labelled_preview import preview_labelled

    source = data[0] if len(data) == 1 else list(map(Path, data))
    with Progress(console=stderr_console(), transient=True, disable=not is_watched()) as bar:
        line = bar.add_task("Reading")

        def progress(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        if task == "classify":
            return preview_labelled(source, tokenizer, options, count, progress, labelling)
        return preview(source, tokenizer, options, count, progress), {}


def _print(result: Preview, data: list[str], limit: int) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False)
    for sample in result.samples:
        _print_sample(console, sample)
    report = result.report
    learned = ""
    if report.format != "classification":
        learned = f", of which {report.learned:,} ({report.learned / max(report.tokens, 1):.1%}) are learned"
    console.print(f"{', '.join(map(printable, data))}: {report.rows:,} rows of the format {report.format}")
    console.print(f"{report.examples:,} examples, {report.tokens:,} tokens{learned}")
    for text in report.notes()[: -1 if report.bad_rows else None]:
        console.print(printable(text))
    _print_lengths(console, result, limit)
    if report.bad_rows:
        console.print(f"{len(report.bad_rows):,} rows that cannot be used", style="red")
        for message in report.bad_rows[:_MAX_BAD_ROWS]:
            console.print(f"  {printable(message)}")
        if len(report.bad_rows) > _MAX_BAD_ROWS:
            console.print(f"  and {len(report.bad_rows) - _MAX_BAD_ROWS:,} more")


def _print_labels(labels: dict[str, int], column: str) -> None:
    """Prints the most frequent labels, and by which column the task was recognised."""
    names = sorted(labels, key=lambda name: -labels[name])
    if names:
        more = f" and {len(names) - _MAX_LABELS:,} more" if len(names) > _MAX_LABELS else ""
        shown = ", ".join(f"{printable(name)} ({labels[name]:,})" for name in names[:_MAX_LABELS])
        typer.echo(f"labels: {shown}{more}")
    if column:
        typer.echo(
            f"shown for `puna train classify`, because of the column {show(column)}; --task sft: the texts alone"
        )


def _print_sample(console: Console, sample: Sample) -> None:
    from rich.text import Text

    removed = f", {sample.removed} tokens removed" * bool(sample.removed)
    title = f"{printable(str(sample.source))}: {len(sample.ids)} tokens, {sample.learned} learned{removed}"
    console.print(title, style="bold")
    text = Text()
    for piece, weight in sample.pieces:
        shown = printable(piece)
        if not weight:
            text.append(shown, "dim")
            continue
        note = "" if weight == 1 else f"({weight:g})"
        style = "yellow" if note else "green"
        text.append(f"{note}{shown}" if console.color_system else f"[[{note}{shown}]]", style)
    console.print(text)
    console.print()


def _print_lengths(console: Console, result: Preview, limit: int) -> None:
    from puna.training.data.preview import histogram

    bars = histogram(result.lengths, limit)
    top = max((count for _, _, count in bars), default=0)
    if not top:
        return
    console.print("tokens       rows")
    for start, stop, count in bars:
        bar = "█" * -(-_BAR * count // top)
        console.print(f"{f'{start}-{stop}':<12} {count:<8,} {bar}", style="red" if start > limit else None)
    if bars[-1][1] > limit:
        console.print(f"max_length is {limit}")


def _json_fields(result: Preview, tokenizer: PreTrainedTokenizerBase, limit: int) -> dict[str, Any]:
    from puna.training.data.preview import histogram

    report = result.report
    numbers = ("format", "rows", "examples", "tokens", "learned", "truncated", "removed")
    return {
        **{name: getattr(report, name) for name in numbers},
        "lengths": [list(bar) for bar in histogram(result.lengths, limit)],
        "bad_rows": report.bad_rows,
        "notes": report.notes()[: -1 if report.bad_rows else None],
        "samples": [
            {
                "source": str(sample.source),
                "text": "".join(piece for piece, _ in sample.pieces),
                "ids": sample.ids.tolist(),
                "weights": sample.weights.tolist(),
            }
            for sample in result.samples
        ],
    }
