"""`puna tokenize`: shows the tokens of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.models import locate
from puna.cli.prompt import read_stdin
from puna.cli.terminal import command, note, print_json

if TYPE_CHECKING:
    from puna.tokenizer.explain import Encoded

_SHOWN = 12
"""The number of ids that the table of behaviours shows from the first difference on."""


@command(
    {
        'puna tokenize "Hello, llama"': "the tokens of a text, with the default model",
        "puna tokenize -m model.gguf - < text.txt": "the tokens of a file",
        'puna tokenize -m llama-2-7b --explain "a </s> b"': "bytes of the tokens, and how the behaviours differ",
    },
    {
        "ids": "token ids",
        "pieces": "the token of each id, as it is in the vocabulary",
        "bytes": "with --explain: the bytes of each token in hexadecimal, null for special tokens",
        "behaviours": "with --explain, by name: ids, pieces, decoded text, index of the first different id or null",
    },
)
def tokenize(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Text, or - for standard input.")],
    model: options.Model = None,
    special: Annotated[bool, typer.Option(help="Add tokens such as BOS at the start or end of the text.")] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the bytes of the tokens, and the ids of each behaviour.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show the tokens of a text."""
    from puna.tokenizer import load_tokenizer

    content = read_stdin("the text") if text == "-" else text
    path = locate(model, "tokenizer")
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(content, add_special_tokens=special)
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in ids]
    if not explain:
        if json:
            print_json({"ids": ids, "pieces": pieces})
            return
        for token, piece in zip(ids, pieces, strict=True):
            typer.echo(f"{token:>7}  {piece!r}")
        note(f"{len(ids)} tokens")
        return
    from puna.grammars.token_bytes import token_bytes
    from puna.hub import local_path
    from puna.tokenizer.explain import explain as encode_with_each

    table = token_bytes(tokenizer)
    contents = [table[index] if index < len(table) else None for index in ids]
    encoded = encode_with_each(local_path(path, "tokenizer"), content, special)
    if json:
        behaviours = {name: vars(item) for name, item in encoded.items()}
        hexadecimal = [None if data is None else data.hex() for data in contents]
        print_json({"ids": ids, "pieces": pieces, "bytes": hexadecimal, "behaviours": behaviours})
        return
    for token, piece, data in zip(ids, pieces, contents, strict=True):
        typer.echo(f"{token:>7}  {piece!r:<20} {'special' if data is None else data.hex(' ')}")
    _show_behaviours(encoded)


def _show_behaviours(encoded: dict[str, Encoded]) -> None:
    """Prints a line per behaviour: the number of ids, and where they differ from those of the first behaviour."""
    from puna.tokenizer.explain import MEANINGS

    first, *others = encoded
    typer.echo(f"\n{first}: {len(encoded[first].ids)} tokens. {MEANINGS[first]}")
    for name in others:
        item, start = encoded[name], encoded[name].difference
        if start is None:
            typer.echo(f"{name}: the same tokens. {MEANINGS[name]}")
            continue
        typer.echo(f"{name}: {len(item.ids)} tokens, different from token {start} on. {MEANINGS[name]}")
        for label, other in ((first, encoded[first]), (name, item)):
            shown = " ".join(
                f"{i}={p!r}" for i, p in list(zip(other.ids, other.pieces, strict=True))[start : start + _SHOWN]
            )
            typer.echo(f"    {label:<15} {shown or '(no more tokens)'}")
    if not others:
        typer.echo("The vocabulary has only this behaviour.")
