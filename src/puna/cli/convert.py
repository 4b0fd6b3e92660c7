"""`puna convert`: writes a model in another layout or type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from puna.cli import options
from puna.cli.conversion import Display, nll_line
from puna.cli.models import complete_model, expand, similar_file, similar_models
from puna.cli.terminal import command, is_quiet, print_json, usage_errors
from puna.errors import RequestError, printable, show_bytes

if TYPE_CHECKING:
    from puna.convert import Converted

_BAR = 24
"""Characters of the longest bar in the report of errors."""


@command(
    {
        "puna convert model.gguf folder --to hf": "to Hugging Face's layout",
        "puna convert folder model.gguf --quantize Q4_0 --verify": "quantise, and compare with the source",
        "puna convert Llama-2-7b folder --to hf --dtype float16": "a folder of Meta's files",
    },
    {
        "plan": "source, target, layout, files, bytes, memory, formats and notes",
        "bytes": "size of the written files, with their headers",
        "seconds": "time of the conversion, with verification",
        "errors": "relative rounding error by kind of tensor",
        "verified": "number of tensors read back; null without --verify",
        "nll": "before, after and tokens of the sample text; empty without --verify",
        "notes": "what could not be carried over, and what was replaced",
        "target, notes": "the only fields with --tokenizer-only",
    },
)
def convert(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            autocompletion=complete_model,
            help="A Hugging Face or Meta folder, a GGUF file, owner/name, or a part of a downloaded model's name.",
        ),
    ],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A new folder, or for GGUF a new file.")],
    to: Annotated[
        Literal["hf", "meta", "gguf"] | None,
        typer.Option(help="Layout. [default: gguf with --quantize or if DST ends with .gguf, else hf]"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Type of weights. [default: the source's]")
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="A GGUF format such as q8_0, or a mix such as Q4_K_M.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Maximum size of a safetensors file. [default: 5GB]")
    ] = None,
    shards: Annotated[
        int | None,
        options.number(
            low=1,
            help="Number of files, instead of --shard-size; for meta, each has a part of each matrix.",
        ),
    ] = None,
    kv_heads: Annotated[int | None, options.number(low=1, help="Pool key-value heads to this number.")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file that shows --quantize which inputs matter most.")
    ] = None,
    vocab_size: Annotated[
        int | None, options.number(low=1, help="Resize embedding and head to this number of rows.")
    ] = None,
    pad_vocab_to: Annotated[
        int | None, options.number(low=1, help="Round vocabulary up to a multiple of this.")
    ] = None,
    llama_version: Annotated[
        Literal["1", "2", "code", "3", "3.1", "3.2", "3.3"] | None,
        typer.Option(help="Release of Meta's files. [default: detected]"),
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
    from puna.convert import convert as convert_model
    from puna.convert import convert_tokenizer
    from puna.convert.mixes import check_calibration, find_mix
    from puna.convert.options import Options
    from puna.saving import parse_size

    if tokenizer_only:
        for name, value in (
            ("--dtype", dtype), ("--quantize", quantize), ("--shard-size", shard_size), ("--shards", shards),
            ("--kv-heads", kv_heads), ("--calibrate", calibrate), ("--vocab-size", vocab_size),
            ("--pad-vocab-to", pad_vocab_to), ("--llama-version", llama_version), ("--verify", verify or None),
            ("--threads", threads),
        ):  # fmt: skip
            if value is not None:
                raise typer.BadParameter(
                    f"{name} applies to weights, but --tokenizer-only converts none; omit one option", param_hint=name
                )
        with similar_models(src):
            notes = convert_tokenizer(expand(src, "tokenizer"), dst, to, instruct=instruct, overwrite=overwrite)
        if json:
            print_json({"target": str(dst), "notes": notes})
        else:
            typer.echo("\n".join([*map(printable, notes), f"tokenizer written to {dst}"]))
        return
    with usage_errors():
        Options(to, dtype, quantize, shard_size, shards).check()
        if quantize is not None:
            find_mix(quantize)
        if calibrate is not None:
            check_calibration(quantize)
        if shard_size is not None:
            parse_size(shard_size)
    if calibrate is not None and not calibrate.exists():
        raise RequestError(f"{calibrate} cannot be read: no such file.{similar_file(calibrate)}")
    with similar_models(src), Display(verify=verify, show_plan=not json) as display:
        converted = convert_model(
            expand(src), dst, to=to, dtype=dtype, quantize=quantize, shard_size=shard_size, shards=shards,
            kv_heads=kv_heads, calibrate=calibrate, vocab_size=vocab_size, pad_vocab_to=pad_vocab_to, verify=verify,
            overwrite=overwrite, llama_version=llama_version, instruct=instruct, threads=threads,
            on_plan=display.on_plan, progress=display.advance, calibrating=display.on_calibration,
            on_step=display.on_step,
        )  # fmt: skip
    if json:
        print_json(converted.to_dict())
    else:
        _show(converted)


def _show(converted: Converted) -> None:
    conversion = converted.conversion
    for text in () if is_quiet() else converted.notes:
        if text not in conversion.plan.notes:  # the display has shown the plan's notes
            typer.secho(f"note: {printable(text)}", fg="yellow")
    if conversion.errors:
        typer.echo("relative rounding error by kind of tensor:")
        largest = max(conversion.errors.values())
        for kind, error in conversion.errors.items():
            typer.echo(f"  {kind:<34} {error:8.4%}  {'█' * max(1, round(_BAR * error / largest))}")
    if conversion.verified is not None:
        typer.echo(f"verified   {conversion.verified} tensors read back as intended")
    if converted.nll:
        typer.echo(nll_line(converted.nll))
    plan = conversion.plan
    checked = "" if conversion.verified is None else ", including the verification"
    typer.echo(f"{plan.target}: {show_bytes(conversion.bytes)} in {conversion.seconds:.1f} s{checked}")
