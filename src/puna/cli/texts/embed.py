"""`puna embed`: the embeddings of texts."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from puna.cli import options
from puna.cli.loading import Loader
from puna.cli.terminal import command, note, print_json
from puna.cli.texts.inputs import Texts, read_texts


@command(
    {
        'puna embed "The llama lives in Peru."': "one line of numbers",
        'puna embed "hot" "cold" --pooling mean --normalize --json': "two embeddings of length 1, as JSON",
        "puna embed < lines.txt": "one embedding for each line",
    },
    {"embeddings": "for each text, a list of numbers: as many as the model's hidden size"},
)
def embed(
    texts: Texts = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    pooling: Annotated[
        Literal["last", "mean"], typer.Option(help="The state of the last token, or the mean of all tokens' states.")
    ] = "last",
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide each embedding by its length.")] = False,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Print the embeddings of texts.

    An embedding is made of the model's hidden states after the final norm.
    """
    inputs = read_texts(texts)
    _, llm = Loader(backend, threads, device, dtype, quantize, max_batch=16, generates=False, adapter=adapter).load(
        model
    )
    embeddings = llm.embed(inputs, pooling=pooling, normalize=normalize, adapter=adapter)
    if json:
        print_json({"embeddings": [[float(str(number)) for number in row] for row in embeddings]})
        return
    for row in embeddings:
        typer.echo(" ".join(str(number) for number in row))
    note(f"{len(embeddings)} x {embeddings.shape[1]} numbers")
