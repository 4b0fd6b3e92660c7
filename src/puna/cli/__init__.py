"""The command `puna`: one file per subcommand. Slow imports are inside the functions, so that `puna --help` is fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from puna import __version__
from puna.cli import bench, chat, convert, generate, info, inspect, perplexity, profile, pull, tokenize

_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Run a model": (generate.generate, chat.chat, perplexity.perplexity),
    "Measure": (bench.bench, profile.profile),
    "Get and convert": (pull.pull, convert.convert),
    "Inspect": (tokenize.tokenize, inspect.inspect, info.info),
}


class _GroupedCommands(TyperGroup):
    """Lists the commands under headings, as plain text: help drawn by rich takes twice as long."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the headings, each with its commands."""
        for heading, functions in _COMMANDS.items():
            with formatter.section(heading):
                commands = [self.commands[function.__name__] for function in functions]
                formatter.write_dl([(str(command.name), command.get_short_help_str(90)) for command in commands])


app = typer.Typer(
    name="puna",
    cls=_GroupedCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _functions in _COMMANDS.values():
    for _function in _functions:
        app.command()(_function)


def _version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"puna {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """The LLaMA family in one small package: run, measure, convert and inspect models."""
