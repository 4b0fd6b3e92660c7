"""`puna list`: the models that are ready to use."""

from __future__ import annotations

import time

import typer

from puna.cli import options
from puna.cli.terminal import command, note, print_json
from puna.errors import printable, show_bytes

_UNITS = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"))


@command(
    {"puna list": "downloaded models, the most recently used first", "puna list --json": "the same as JSON"},
    {"models": "list of models, each with name, bytes, format, complete and last_used (seconds since 1970)"},
)
def list_models(json: options.Json = False) -> None:
    """List the models that are ready to use.

    These are the models in the cache of the Hugging Face hub, and the default model. Wherever a model is expected, a
    part of such a name is enough, if it matches only one model.
    """
    from puna import hub
    from puna.checkpoint.locate import default_model

    models = hub.cached_models()
    default = default_model()
    if json:
        print_json({"models": [vars(model) for model in models]})
        return
    rows = [
        (
            model.name,
            show_bytes(model.bytes),
            model.format + ("" if model.complete else ", incomplete"),
            _ago(model.last_used),
        )
        for model in models
    ]
    if default is not None:
        rows.append(
            ("SmolLM2-135M-Instruct (default)", show_bytes(default.stat().st_size), "GGUF Q4_1", "part of a package")
        )
    if not rows:
        note("There is no model yet; puna pull owner/name downloads one.")
        return
    rows.insert(0, ("NAME", "SIZE", "FORMAT", "LAST USED"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, bytes_, format_, used in rows:
        typer.echo(f"{printable(name):<{widths[0]}}  {bytes_:>{widths[1]}}  {format_:<{widths[2]}}  {used}")


def _ago(moment: float) -> str:
    seconds = time.time() - moment
    for unit, name in _UNITS:
        count = int(seconds // unit)
        if count > 0:
            return f"{count} {name}{'s' * (count != 1)} ago"
    return "now"
