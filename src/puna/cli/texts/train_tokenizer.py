"""`puna tokenizer train`: trains a tokenizer on text files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, is_watched, note, print_json, stderr_console, usage_errors

if TYPE_CHECKING:
    from puna.training.tokenizer.train import Progress, TokenizerKind


@command(
    {
        "puna tokenizer train book.txt --kind char -o tokens": "a token for each character",
        "puna tokenizer train texts/ --kind llama3 --vocab-size 4096 -o tokens": "byte-level BPE, as in Llama 3",
        "puna tokenizer train a.txt b.txt --vocab-size 4096 -o tokens": "SentencePiece BPE, as in Llama 2",
    },
    {
        "path": "the folder",
        "kind": "llama2, llama3 or char",
        "tokens": "size of the vocabulary",
        "bytes": "size of the texts",
        "seconds": "time of reading and training",
    },
)
def train_tokenizer(
    texts: Annotated[
        list[Path], typer.Argument(metavar="TEXT...", help="Text files, or folders of .txt and .md files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the tokenizer.")],
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="llama2 (SentencePiece BPE), llama3 (byte-level BPE) or char.")
    ] = "llama2",
    vocab_size: Annotated[
        int | None,
        options.number(low=1, help="Number of tokens. [default: 32000, llama3 128256, char all characters]"),
    ] = None,
    byte_fallback: Annotated[
        bool | None,
        typer.Option(
            "--byte-fallback/--no-byte-fallback",
            help="Add 256 tokens for the bytes of characters without a token. Default: on, off for char.",
            show_default=False,
        ),
    ] = None,
    special_tokens: Annotated[
        int, options.number(low=11, high=256, help="For llama3: how many of Llama 3's special tokens to add.")
    ] = 11,
    json: options.Json = False,
) -> None:
    """Train a tokenizer on text files.

    The folder can be used by puna, transformers and the conversion to GGUF.
    """
    from typing import cast

    from puna.training.tokenizer.train import TokenizerTraining
    from puna.training.tokenizer.train import train_tokenizer as train

    chosen = cast("TokenizerKind", kind)
    with usage_errors():
        TokenizerTraining(chosen, vocab_size, byte_fallback, special_tokens)
    sizes = {"total": 0}
    start = time.monotonic()
    with _progress(sizes) as progress:
        tokenizer = train(
            texts, output, chosen, vocab_size,
            byte_fallback=byte_fallback, special_tokens=special_tokens, progress=progress,
        )  # fmt: skip
    seconds = time.monotonic() - start
    if json:
        fields = {"path": str(output), "kind": kind, "tokens": len(tokenizer), "bytes": sizes["total"]}
        print_json({**fields, "seconds": seconds})
        return
    typer.echo(f"{output}: {len(tokenizer)} tokens, trained on {sizes['total']:,} bytes in {seconds:.1f} s")
    note(f'next: puna tokenize -m {output} "a text"')


@contextmanager
def _progress(sizes: dict[str, int]) -> Iterator[Progress]:
    """Yields a callback that shows the progress on a terminal; keeps the number of bytes in `sizes`."""
    if not is_watched():
        yield lambda step, done, total: sizes.update(total=total)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr_console(), transient=True) as bar:
        task = bar.add_task("Reading the text")

        def show(step: str, done: int, total: int) -> None:
            sizes.update(total=total)
            if step == "reading":
                bar.update(task, completed=done, total=total)
            else:
                bar.update(task, description="Computing the vocabulary", total=None)

        yield show
