"""`puna tokenize`: shows the tokens of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, print_json, read_text


@command
def tokenize(
    text: Annotated[str, typer.Argument(help="Text, or - for standard input.")],
    model: options.Model = None,
    special: Annotated[bool, typer.Option(help="Add tokens such as BOS at the start or end of the text.")] = True,
    json: options.Json = False,
) -> None:
    """Show the tokens of a text."""
    from puna.checkpoint import locate_model
    from puna.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(locate_model(model, "tokenizer"))
    ids = tokenizer.encode(read_text(text, "the text"), add_special_tokens=special)
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in ids]
    if json:
        print_json({"ids": ids, "pieces": pieces})
        return
    for token, piece in zip(ids, pieces, strict=True):
        typer.echo(f"{token:>7}  {piece!r}")
    typer.echo(f"{len(ids)} tokens", err=True)
