"""`puna merge`: writes a model with the changes of an adapter in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from puna.cli import options
from puna.cli.conversion import Display, nll_line
from puna.cli.models import expand, similar_file, similar_models
from puna.cli.terminal import command, is_quiet, print_json, usage_errors
from puna.errors import RequestError, printable, show_bytes

if TYPE_CHECKING:
    from puna.convert import Merged

_SHOWN = 8
"""Matrices with the largest errors that are listed; --json has all."""


@command(
    {
        "puna merge Llama-2-7b my-lora merged": "a LoRA of PEFT, into a Hugging Face folder",
        "puna merge model.gguf my-lora merged.gguf": "into a GGUF file; its matrices are quantised again",
        "puna merge Llama-2-7b my-lora merged.gguf --quantize Q4_K_M": "merge and quantise at once",
    },
    {
        "plan": "source, target, layout, files, bytes, memory, formats and notes",
        "bytes": "size of the written files, with their headers",
        "seconds": "time of writing and verification",
        "errors": "relative rounding error by kind of tensor, where the format differs from the base model's",
        "verified": "number of tensors read back; null with --no-verify",
        "nll": "before (base model), after (merged) and tokens of the sample text; empty with --no-verify",
        "notes": "what could not be carried over, and what was replaced",
        "tensors": "for each changed matrix, its relative change and rounding error, on a sample of rows",
    },
)
def merge(
    model: options.ModelArgument,
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A PEFT folder, or a GGUF adapter.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A new folder, or for GGUF a new file.")],
    to: Annotated[
        Literal["hf", "gguf"] | None,
        typer.Option(help="Layout. [default: gguf with --quantize or if OUTPUT ends with .gguf, else hf]"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Type of weights. [default: the base model's]"),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="A GGUF format such as q8_0, or a mix such as Q4_K_M.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Maximum size of a safetensors file. [default: 5GB]")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Read the result back, and measure the change in NLL of a sample text.")
    ] = True,
    sample: Annotated[Path | None, typer.Option(metavar="FILE", help="Sample text. [default: a text of puna]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file or folder at OUTPUT.")] = False,
    threads: options.Threads = None,
    json: options.Json = False,
) -> None:
    """Write a model with the changes of an adapter (LoRA, DoRA, IA3) in its weights.

    OUTPUT appears only when the result is complete. Repeat an interrupted command to resume it.
    """
    from puna.convert import merge as merge_adapter
    from puna.convert.mixes import find_mix
    from puna.convert.options import Options

    with usage_errors():
        Options(to, dtype, quantize, shard_size).check()
        if quantize is not None:
            find_mix(quantize)
    if not adapter.exists():
        raise RequestError(f"{adapter}: no such file or folder; give the folder of an adapter.{similar_file(adapter)}")
    with similar_models(model), Display(verify=verify, show_plan=not json) as display:
        merged = merge_adapter(
            expand(model), adapter, output, to=to, dtype=dtype, quantize=quantize, shard_size=shard_size,
            verify=verify, sample=sample, overwrite=overwrite, threads=threads,
            on_plan=display.on_plan, progress=display.advance, on_step=display.on_step,
        )  # fmt: skip
    if json:
        print_json(merged.to_dict())
    else:
        _show(merged)


def _show(merged: Merged) -> None:
    conversion = merged.converted.conversion
    for text in () if is_quiet() else merged.converted.notes:
        if text not in conversion.plan.notes:  # the display has shown the plan's notes
            typer.secho(f"note: {printable(text)}", fg="yellow")
    typer.echo(f"changed    {len(merged.tensors)} matrices; largest rounding errors, relative to the merged values:")
    worst = sorted(merged.tensors.items(), key=lambda item: -item[1]["error"])
    for name, errors in worst[:_SHOWN]:
        change = f", change {errors['change']:8.4%}" if "change" in errors else ""
        typer.echo(f"  {name:<44} error {errors['error']:8.4%}{change}")
    if conversion.verified is not None:
        typer.echo(f"verified   {conversion.verified} tensors read back as intended")
    if merged.converted.nll:
        typer.echo(nll_line(merged.converted.nll))
    typer.echo(f"{conversion.plan.target}: {show_bytes(conversion.bytes)} in {conversion.seconds:.1f} s")
