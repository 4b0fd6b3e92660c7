"""`puna perplexity`: the perplexity of a model on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.loading import Loader
from puna.cli.prompt import read_file
from puna.cli.terminal import command, detail, is_watched, print_json, stderr_console
from puna.errors import RequestError

_WINDOW = 512
"""Default number of tokens per window."""


@command(
    {
        "puna perplexity text.txt": "the default model",
        "puna perplexity text.txt -m model.gguf -c 1024 --max-tokens 20000": "the beginning of a text, in long windows",
    },
    {
        "tokens": "number of predicted tokens",
        "nll": "mean negative log-likelihood, in nats per token",
        "perplexity": "exp(nll)",
    },
)
def perplexity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="UTF-8 text file.")],
    model: options.Model = None,
    context: Annotated[
        int | None,
        typer.Option("--context", "-c", min=2, help="Tokens per window. [default: 512, or the model's context]"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=2, help="Number of tokens to read. [default: all]")
    ] = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Measure the perplexity of a model on a text.

    The text is tokenized once and split into windows of --context tokens. The first token of each window is not
    predicted.
    """
    from rich.progress import track

    text = read_file(file)
    _, llm = Loader(backend, threads, device, dtype, quantize).load(model)
    longest = llm.config.context_length
    if context is not None and context > longest:
        raise RequestError(f"--context is {context}, but the model's context is {longest}; lower --context")
    windows = list(_windows(llm.tokenizer.encode(text)[:max_tokens], context or min(_WINDOW, longest)))
    if not windows:
        raise RequestError(f"{file} has fewer than 2 tokens; there is nothing to predict")
    detail(f"reading {sum(map(len, windows))} tokens in {len(windows)} windows")
    total, count = 0.0, 0
    for window in track(windows, "Reading", console=stderr_console(), transient=True, disable=not is_watched()):
        losses = llm.nll(window)
        total, count = total + float(losses.sum()), count + len(losses)
    nll = total / count
    if json:
        print_json({"tokens": count, "nll": nll, "perplexity": math.exp(nll)})
    else:
        typer.echo(f"{count} tokens predicted: {nll:.4f} nats per token, perplexity {math.exp(nll):.3f}")


def _windows(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yields consecutive windows, without a last window of one token, which would predict nothing."""
    for start in range(0, len(ids), size):
        window = ids[start : start + size]
        if len(window) > 1:
            yield window
