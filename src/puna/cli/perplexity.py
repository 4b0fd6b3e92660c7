"""`puna perplexity`: the perplexity of a model on a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.terminal import command, loading, print_json, stderr_console
from puna.errors import RequestError


@command
def perplexity(
    file: Annotated[Path, typer.Argument(help="UTF-8 text file.")],
    model: options.Model = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Number of tokens to read. [default: all]")] = None,
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

    from puna.llm import LLM

    text = _read(file)
    with loading(model):
        llm = LLM(model, backend, threads, device=device, dtype=dtype, quantize=quantize)
    windows = list(_windows(llm.tokenizer.encode(text)[:max_tokens], context))
    if not windows:
        raise RequestError(f"{file} has fewer than 2 tokens; there is nothing to predict")
    console = stderr_console()
    total, count = 0.0, 0
    for window in track(windows, "Reading", console=console, transient=True, disable=not console.is_terminal):
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


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # text mode would translate line ends
    except UnicodeDecodeError as exc:
        raise RequestError(f"{file} is not UTF-8 text ({exc}); convert it first") from exc
    except OSError as exc:
        raise RequestError(f"{file} cannot be read: {exc.strerror}") from exc
