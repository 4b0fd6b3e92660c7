"""The command `puna`: one small file per command. Heavy imports wait until a command runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from puna import __version__
from puna.cli import bench, chat, convert, generate, info, inspect, perplexity, profile, pull, tokenize

_CONTENTS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run a model": (generate.generate, chat.chat, perplexity.perplexity),
    "Measure": (bench.bench, profile.profile),
    "Get and convert": (pull.pull, convert.convert),
    "Look before you run": (tokenize.tokenize, inspect.inspect, info.info),
}


class _TableOfContents(TyperGroup):
    """Lists the commands under headings. Plain text: drawing the help with rich would take twice as long."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes each heading of the table of contents with its commands."""
        for heading, commands in _CONTENTS.items():
            with formatter.section(heading):
                shown = [self.commands[command.__name__] for command in commands]
                formatter.write_dl([(str(command.name), command.get_short_help_str(90)) for command in shown])


app = typer.Typer(
    name="puna",
    cls=_TableOfContents,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _commands in _CONTENTS.values():
    for _command in _commands:
        app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"puna {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The LLaMA family in one small package: run a model, convert it, look into its files."""
