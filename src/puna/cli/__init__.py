"""The command `puna`: one file per subcommand, imported only when it is used, so that `puna --help` is fast."""

from __future__ import annotations

from typing import Annotated

import typer

from puna import __version__
from puna.cli.group import CommandGroup
from puna.cli.welcome import show_next_steps

app = typer.Typer(
    name="puna",
    cls=CommandGroup,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"puna {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The LLaMA family in one small package: run, measure, convert and inspect models.

    MODEL is a folder, a GGUF file, owner/name on the Hugging Face hub, or a part of a downloaded model's name.
    """
    if context.invoked_subcommand is None:
        show_next_steps()
