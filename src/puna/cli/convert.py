"""`puna convert`: writes a model in another layout or type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, is_watched, print_json, printable, size, stderr_console
from puna.errors import RequestError

if TYPE_CHECKING:
    from puna.convert import Converted, Plan

_BAR = 24
"""Characters of the longest bar in the report of errors."""

_Callbacks = tuple[Callable[["Plan"], None], Callable[[int], None], Callable[[float], None]]


@command
def convert(
    src: Annotated[str, typer.Argument(help="A Hugging Face or Meta folder, a GGUF file, or owner/name.")],
    dst: Annotated[Path, typer.Argument(help="A new folder, or for GGUF a new file.")],
    to: Annotated[str | None, typer.Option(help="hf, meta or gguf. [default: gguf with --quantize, else hf]")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: the source's]")] = None,
    quantize: Annotated[str | None, typer.Option(help="A GGUF format such as q8_0, or a mix such as Q4_K_M.")] = None,
    shard_size: Annotated[str | None, typer.Option(help="Maximum size of a safetensors file. [default: 5GB]")] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Number of files, instead of --shard-size; for meta, each has a part of each matrix."),
    ] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Pool key-value heads to this number.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="Text file that shows --quantize which inputs matter most.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Resize embedding and head to this number of rows.")
    ] = None,
    pad_vocab_to: Annotated[int | None, typer.Option(min=1, help="Round vocabulary up to a multiple of this.")] = None,
    llama_version: Annotated[
        str | None, typer.Option(help="Release of Meta's files: 1, 2, code, 3, 3.1, 3.2, 3.3. [default: detected]")
    ] = None,
    instruct: Annotated[bool, typer.Option(help="Add Llama 3's chat template, which Meta's files lack.")] = False,
    tokenizer_only: Annotated[bool, typer.Option("--tokenizer-only", help="Convert no weights.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the result with the source; measure the change in NLL.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file or folder at DST.")] = False,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Convert a model to another layout (Hugging Face, Meta, GGUF) or type, or quantise it.

    DST appears only when the result is complete. Repeat an interrupted command to resume it.
    """
    from puna.convert import LAYOUTS, convert_tokenizer
    from puna.convert import convert as convert_model

    layout = next((one for one in LAYOUTS if one == to), None)
    if to is not None and layout is None:
        raise RequestError(f"--to is {to!r}; it must be one of {', '.join(LAYOUTS)}")
    if tokenizer_only:
        for name, value in (
            ("--dtype", dtype), ("--quantize", quantize), ("--shard-size", shard_size), ("--shards", shards),
            ("--kv-heads", kv_heads), ("--calibrate", calibrate), ("--vocab-size", vocab_size),
            ("--pad-vocab-to", pad_vocab_to), ("--llama-version", llama_version), ("--verify", verify or None),
            ("--threads", threads),
        ):  # fmt: skip
            if value is not None:
                raise RequestError(f"{name} applies to weights, but --tokenizer-only converts none; omit one option")
        notes = convert_tokenizer(src, dst, layout, instruct=instruct, overwrite=overwrite)
        if json:
            print_json({"target": str(dst), "notes": notes})
        else:
            typer.echo("\n".join([*map(printable, notes), f"tokenizer written to {dst}"]))
        return
    with _callbacks(quiet=json, verify=verify) as (on_plan, progress, calibrating):
        converted = convert_model(
            src, dst, to=layout, dtype=dtype, quantize=quantize, shard_size=shard_size, shards=shards,
            kv_heads=kv_heads, calibrate=calibrate, vocab_size=vocab_size, pad_vocab_to=pad_vocab_to, verify=verify,
            overwrite=overwrite, llama_version=llama_version, instruct=instruct, threads=threads, on_plan=on_plan,
            progress=progress, calibrating=calibrating,
        )  # fmt: skip
    if json:
        print_json(converted.to_dict())
    else:
        _show(converted)


@contextmanager
def _callbacks(quiet: bool, verify: bool) -> Iterator[_Callbacks]:
    """Yields on_plan, progress and calibrating, which show the plan and, on a terminal, a progress bar."""
    if not is_watched():
        yield (lambda plan: None if quiet else _show_plan(plan)), lambda count: None, lambda share: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("Converting", total=None)

        def on_plan(plan: Plan) -> None:
            if not quiet:
                _show_plan(plan)
            bar.update(task, description="Converting", total=plan.bytes * (2 if verify else 1))

        def calibrating(share: float) -> None:
            bar.update(task, description=f"Reading the calibration text, {share:.0%}")

        yield on_plan, lambda count: bar.advance(task, count), calibrating


def _show_plan(plan: Plan) -> None:
    for line in _plan_lines(plan):
        typer.echo(line, err=True)


def _plan_lines(plan: Plan) -> Iterator[str]:
    yield f"{plan.source} ({plan.kind}) -> {plan.target} ({plan.layout})"
    before, after = _format_counts(plan.before), _format_counts(plan.formats)
    yield f"tensors    {before}" + (f" -> {after}" if before != after else "")
    names = [file["name"] for file in plan.files]
    shown = ", ".join(names if len(names) < 4 else [names[0], "...", names[-1]])
    yield f"writes     {size(plan.bytes)} in {len(names)} file(s): {shown}"
    if plan.fallbacks:
        kinds = ", ".join(sorted(set(plan.fallbacks.values())))
        yield f"fallbacks  {len(plan.fallbacks)} matrices get {kinds}, since their rows do not fit the mix (see --json)"
    if plan.finished:
        yield f"finished   {size(plan.finished)} by an earlier run, which this one resumes"
    yield f"disk       {size(plan.free)} free"
    yield f"memory     about {size(plan.memory)}"
    for note in plan.notes:
        yield f"note       {note}"


def _show(converted: Converted) -> None:
    conversion = converted.conversion
    for note in converted.notes:
        if note not in conversion.plan.notes:  # `_show_plan` has shown the plan's notes
            typer.secho(f"note: {printable(note)}", fg="yellow")
    if conversion.errors:
        typer.echo("relative rounding error by kind of tensor:")
        largest = max(conversion.errors.values())
        for kind, error in conversion.errors.items():
            typer.echo(f"  {kind:<34} {error:8.4%}  {'█' * max(1, round(_BAR * error / largest))}")
    if conversion.verified is not None:
        typer.echo(f"verified   {conversion.verified} tensors read back as intended")
    if nll := converted.nll:
        change = nll["after"] - nll["before"]
        typer.echo(
            f"NLL        {nll['before']:.4f} -> {nll['after']:.4f} nats per token ({change:+.4f}, "
            f"{change / nll['before']:+.2%}) on {nll['tokens']:.0f} tokens"
        )
    plan = conversion.plan
    typer.echo(
        f"{plan.target}: {size(plan.bytes)} in {conversion.seconds:.1f} s "
        f"({size(int((plan.bytes - plan.finished) / max(conversion.seconds, 1e-3)))}/s)"
    )


def _format_counts(formats: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(formats.items(), key=lambda item: -item[1]))
