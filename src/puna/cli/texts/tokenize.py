"""`puna tokenize`: shows the tokens of a text."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import options
from puna.cli.models import locate
from puna.cli.prompt import read_stdin
from puna.cli.terminal import command, note, print_json


@command(
    {
        'puna tokenize "Hello, llama"': "the tokens of a text, with the default model",
        "puna tokenize -m model.gguf - < text.txt": "the tokens of a file",
    },
    {"ids": "token ids", "pieces": "the token of each id, as it is in the vocabulary"},
)
def tokenize(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text, or - for standard input.")],
    model: options.Model = None,
    special: Annotated[bool, typer.Option(help="Add tokens such as BOS at the start or end of the text.")] = True,
    json: options.Json = False,
) -> None:
    """Show the tokens of a text."""
    from puna.tokenizer import load_tokenizer

    content = read_stdin("the text") if text == "-" else text
    tokenizer = load_tokenizer(locate(model, "tokenizer"))
    ids = tokenizer.encode(content, add_special_tokens=special)
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in ids]
    if json:
        print_json({"ids": ids, "pieces": pieces})
        return
    for token, piece in zip(ids, pieces, strict=True):
        typer.echo(f"{token:>7}  {piece!r}")
    note(f"{len(ids)} tokens")
