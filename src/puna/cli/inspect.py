"""`puna inspect`: what a checkpoint is, before loading it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import options
from puna.cli.terminal import command, print_json, size

if TYPE_CHECKING:
    from puna.checkpoint.inspect import Report


@command
def inspect(
    path: Annotated[
        str | None, typer.Argument(help="A folder, a file, or owner/name of the hub. [default: SmolLM2-135M-Instruct]")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what a checkpoint is, what it needs, and what is wrong with it, without loading it.

    The exit status is 1 when something keeps the model from loading.
    """
    from puna.checkpoint import inspect_checkpoint, locate_model

    report = inspect_checkpoint(locate_model(path))
    if json:
        print_json(report.to_dict())
    else:
        _show(report)
    if report.errors:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    for name, value in _rows(report):
        typer.echo(f"{name:<15} {value}")
    for warning in report.warnings:
        typer.secho(f"warning: {warning}", fg="yellow")
    for error in report.errors:
        typer.secho(f"error: {error}", fg="red")


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "model", report.path
    yield "format", f"{report.container or 'unknown'}, {size(report.bytes)} in {len(report.files)} file(s)"
    if report.parameters:
        yield "parameters", f"{report.parameters:,}"
        yield (
            "weights",
            ", ".join(f"{name}: {d['tensors']} tensors, {size(d['bytes'])}" for name, d in report.dtypes.items()),
        )
    if shape := report.architecture:
        yield (
            "layers",
            f"{shape['num_hidden_layers']} of width {shape['hidden_size']}, feed-forward {shape['intermediate_size']}",
        )
        yield (
            "heads",
            f"{shape['num_attention_heads']} query, {shape['num_key_value_heads']} key-value, {shape['head_dim']} wide",
        )
        yield "output head", f"{report.head}{', shares the embedding' if shape['tie_word_embeddings'] else ''}"
        yield "rope", _settings(report.rope)
        yield "context", f"{report.context:,} tokens"
    if report.vocabulary:
        tokens = report.vocabulary["tokens"]
        yield "vocabulary", f"{report.vocabulary['rows']:,} rows, {'no' if tokens is None else f'{tokens:,}'} tokens"
        yield "special", ", ".join(_special(name, entry) for name, entry in report.special_tokens.items())
        yield "chat template", {True: "yes", False: "no", None: "unknown"}[report.chat_template]
    if memory := report.memory:
        stored, wide = size(memory["weights"]), size(memory["weights_as_float32"])
        narrow, cache = (size(memory[f"cache_per_1000_tokens_{kind}"]) for kind in ("bfloat16", "float32"))
        yield "memory", f"weights {stored} as stored, {wide} as float32"
        yield "", f"each 1,000 tokens of context {narrow} as bfloat16, {cache} as float32"


def _settings(rope: dict[str, Any]) -> str:
    rest = ", ".join(
        f"{key} {value}" for key, value in rope.items() if key != "rope_type" and not isinstance(value, list)
    )
    return f"{rope['rope_type']}: {rest}"


def _special(name: str, entry: dict[str, Any]) -> str:
    text = f" {entry['text']}" if entry.get("text") is not None else ""
    return f"{name} {'none' if entry['id'] is None else entry['id']}{text}"
