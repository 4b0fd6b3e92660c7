"""`puna inspect`: describes a checkpoint without loading it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import options
from puna.cli.models import complete_model, locate
from puna.cli.terminal import command, print_json
from puna.errors import printable, show_bytes

if TYPE_CHECKING:
    from puna.checkpoint.inspect import Report


FIELDS = {
    "path": "where the model is",
    "kind": "hf, gguf or meta; null if there is no model that puna reads",
    "container": "file format, such as GGUF v3",
    "files, bytes": "name and size of each weight file; their total size",
    "parameters": "number of parameters",
    "dtypes": "for each format, the number of tensors, parameters and bytes",
    "head": "lm, classification or none",
    "architecture": "sizes of the model, with the names of LlamaConfig",
    "rope": "settings of the rotary embedding",
    "context": "maximum number of tokens",
    "vocabulary": "rows of the embedding; tokens of the tokenizer",
    "special_tokens": "for bos, eos and pad, the id and text",
    "generation": "defaults of an answer: max_tokens, temperature and the other options of sampling, stop",
    "chat_template": "whether there is one; null if unknown",
    "memory": "bytes of the weights and of the cache of 1,000 tokens",
    "notes": "what the files contain that changes no answer",
    "warnings, errors": "problems despite which the model loads, and problems that prevent it",
}


@command(
    {
        "puna inspect": "the default model",
        "puna inspect model.gguf": "a file",
        "puna inspect owner/name --json": "a model of the hub, as JSON",
    },
    FIELDS,
)
def inspect(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            envvar="PUNA_MODEL",
            autocompletion=complete_model,
            help="Folder, file, owner/name on the hub, or a part of a downloaded model's name. [default: "
            "SmolLM2-135M-Instruct]",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show a checkpoint's format, sizes and errors without loading it.

    The exit status is 1 if an error keeps the model from loading.
    """
    from puna.checkpoint import inspect_checkpoint

    report = inspect_checkpoint(locate(path))
    if json:
        print_json(report.to_dict())
    else:
        _show(report)
    if report.errors:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    for name, value in _rows(report):
        typer.echo(f"{name:<15} {printable(value)}")
    for note in report.notes:
        typer.echo(f"note: {printable(note)}")
    for warning in report.warnings:
        typer.secho(f"warning: {printable(warning)}", fg="yellow")
    for error in report.errors:
        typer.secho(f"error: {printable(error)}", fg="red")


def _rows(report: Report) -> Iterator[tuple[str, str]]:
    yield "model", report.path
    if report.files:
        container, files = report.container or "unknown", _count(len(report.files), "file")
        yield "format", f"{container}, {show_bytes(report.bytes)} in {files}"
    if report.parameters:
        yield "parameters", f"{report.parameters:,}"
        dtypes = report.dtypes.items()
        yield (
            "weights",
            ", ".join(f"{name} {show_bytes(d['bytes'])} in {_count(d['tensors'], 'tensor')}" for name, d in dtypes),
        )
    if shape := report.architecture:
        layers, width, ffn = (shape[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
        heads, kv_heads, head = (shape[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        yield "layers", f"{layers}, width {width}, feed-forward {ffn}"
        yield "heads", f"{heads} for queries, {kv_heads} for keys and values, width {head}"
        shared = ", shares the embedding" if shape["tie_word_embeddings"] else ""
        yield "output head", f"{report.head or 'unknown'}{shared}"
        yield "rope", _settings(report.rope)
        yield "context", _count(report.context, "token")
    if report.vocabulary:
        rows, tokens = report.vocabulary.get("rows"), report.vocabulary.get("tokens")
        counts = [_count(rows, "row")] if rows is not None else []
        yield "vocabulary", ", ".join([*counts, "no tokens" if tokens is None else _count(tokens, "token")])
    if report.special_tokens:
        yield "special", ", ".join(_special(name, entry) for name, entry in report.special_tokens.items())
    if report.generation:
        yield "generation", _generation(report.generation)
    if report.vocabulary:
        yield "chat template", {True: "yes", False: "no", None: "unknown"}[report.chat_template]
    if memory := report.memory:
        as_stored, as_float32 = show_bytes(memory["weights"]), show_bytes(memory["weights_as_float32"])
        in_bfloat16, in_float32 = (
            show_bytes(memory[f"cache_per_1000_tokens_{kind}"]) for kind in ("bfloat16", "float32")
        )
        yield "memory", f"weights {as_stored} as stored, {as_float32} as float32"
        yield "", f"cache per 1,000 tokens {in_bfloat16} as bfloat16, {in_float32} as float32"


def _count(number: int | None, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _settings(rope: dict[str, Any]) -> str:
    numbers = ", ".join(
        f"{key} {value}" for key, value in rope.items() if key != "rope_type" and not isinstance(value, list)
    )
    return f"{rope['rope_type']}: {numbers}"


def _generation(defaults: dict[str, Any]) -> str:
    """Describes the defaults of generation; filters are shown only if the model samples."""
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0, "min_tokens": 0}
    filters = ("top_k", "top_p", "min_p", "typical_p")
    samples = defaults.get("temperature", 0.0) > 0
    parts = [f"temperature {defaults['temperature']}"] if samples else ["the most likely token"]
    for name, value in defaults.items():
        if name != "temperature" and value not in (None, (), neutral.get(name)) and (samples or name not in filters):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _special(name: str, entry: dict[str, Any]) -> str:
    text = f" {entry['text']}" if entry.get("text") is not None else ""
    return f"{name} {'none' if entry['id'] is None else entry['id']}{text}"
