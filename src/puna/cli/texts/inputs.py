"""The texts of `puna embed` and `puna classify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from puna.cli.prompt import is_piped, read_stdin

Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]...", help="Texts. Without any, each line of standard input is a text."),
]


def read_texts(arguments: Sequence[str] | None) -> list[str]:
    """Returns the arguments; without any, the lines of standard input.

    Raises:
        typer.BadParameter: there is no text.
    """
    if arguments:
        return list(arguments)
    texts = read_stdin("the text").splitlines() if is_piped() else []
    if not texts:
        raise typer.BadParameter(
            "there is no text; give one or several, or pipe lines into standard input", param_hint="TEXT"
        )
    return texts
