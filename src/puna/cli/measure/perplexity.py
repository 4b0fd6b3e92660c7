"""`puna perplexity`: the perplexity of a model on a text, and its divergence from a reference model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli import options
from puna.cli.loading import Loader
from puna.cli.models import complete_model
from puna.cli.prompt import read_file
from puna.cli.terminal import command, detail, is_watched, print_json, stderr_console
from puna.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from puna.llm import LLM

_WINDOW = 512
"""Default number of tokens per window."""


@command(
    {
        "puna perplexity text.txt": "the default model",
        "puna perplexity text.txt -m model.gguf -c 1024 --max-tokens 20000": "the beginning of a text, in long windows",
        "puna perplexity text.txt -m q4.gguf --against f16.gguf": "the effect of quantisation",
        "puna perplexity text.txt -m q4.gguf --against q4.gguf": "the effect of rounding activations",
    },
    {
        "tokens": "number of predicted tokens",
        "nll": "mean negative log-likelihood, in nats per token",
        "perplexity": "exp(nll)",
        "against": "null without --against; otherwise reference_nll, nll_difference (nll - reference_nll), kl_mean, "
        "kl_p99 and kl_max (divergence from the reference, in nats per token), and same_top (fraction of tokens with "
        "the same most likely token)",
    },
)
def perplexity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="UTF-8 text file.")],
    model: options.Model = None,
    adapter: options.Adapter = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            autocompletion=complete_model,
            help="Reference model to compare with; it has the same vocabulary and runs in float32.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        options.number("--context", "-c", low=2, help="Tokens per window. [default: 512, or the model's context]"),
    ] = None,
    max_tokens: Annotated[
        int | None, options.number("--max-tokens", "-n", low=2, help="Number of tokens to read. [default: all]")
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

    --against compares the predictions with those of a reference model, as llama-perplexity --kl-divergence does. Both
    models are in memory at once. --dtype, --quantize and --adapter affect only --model: the reference model runs in
    float32 and rounds no activations.
    """
    text = read_file(file)
    _, llm = Loader(backend, threads, device, dtype, quantize, adapter=adapter).load(model)
    reference = None if against is None else _load_reference(llm, Loader(backend, threads, device, "float32"), against)
    longest = min(llm.longest_text(adapter), (reference or llm).longest_text())
    if context is not None and context > longest:
        raise RequestError(f"--context is {context}, but the model's context is {longest}; lower --context")
    windows = list(_windows(llm.tokenizer.encode(text)[:max_tokens], context or min(_WINDOW, longest)))
    if not windows:
        raise RequestError(f"{file} has fewer than 2 tokens; there is nothing to predict")
    detail(f"reading {sum(map(len, windows))} tokens in {len(windows)} windows")
    if reference is None:
        nll, differences = _mean_nll(llm, adapter, _with_progress(windows)), None
    else:
        nll, differences = _compare(_Adapted(llm, adapter), reference, _with_progress(windows))
    result = {"tokens": sum(map(len, windows)) - len(windows), "nll": nll, "perplexity": math.exp(nll)}
    if json:
        print_json({**result, "against": differences})
    else:
        typer.echo("{tokens} tokens predicted: {nll:.4f} nats per token, perplexity {perplexity:.3f}".format(**result))
        if differences is not None:
            _print_differences(differences)


def _load_reference(llm: LLM, loader: Loader, name: str) -> LLM:
    """Returns the reference model.

    Raises:
        RequestError: its vocabulary differs from that of `llm`.
    """
    from puna.divergence import check_same_vocabulary

    _, reference = loader.load(name)
    if llm.config.vocab_size != reference.config.vocab_size:
        raise RequestError(
            f"the model's vocabulary has {llm.config.vocab_size} tokens, but the reference model's "
            f"{reference.config.vocab_size}; use a reference model with the same vocabulary"
        )
    check_same_vocabulary(llm.tokenizer.get_vocab(), reference.tokenizer.get_vocab())
    return reference


@dataclass(frozen=True)
class _Adapted:
    """A model with an adapter or none, for `measure_divergence`."""

    llm: LLM
    adapter: str | None

    def iter_logits(self, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yields the logits after each token in parts: float32, (tokens, vocab_size)."""
        return self.llm.iter_logits(token_ids, adapter=self.adapter)


def _mean_nll(llm: LLM, adapter: str | None, windows: Iterable[Sequence[int]]) -> float:
    total, count = 0.0, 0
    for window in windows:
        losses = llm.nll(window, adapter=adapter)
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count


def _compare(model: _Adapted, reference: LLM, windows: Iterable[Sequence[int]]) -> tuple[float, dict[str, float]]:
    """Returns the mean negative log-likelihood and the differences from the reference model."""
    from puna.divergence import measure_divergence

    divergence = measure_divergence(model, reference, windows)
    return float(divergence.nll.mean()), divergence.summary()


def _print_differences(differences: dict[str, float]) -> None:
    typer.echo(
        "reference: {reference_nll:.4f} nats per token, perplexity {perplexity:.3f} (difference {nll_difference:+.5f} "
        "nats per token, ratio of perplexities {ratio:.5f})\n"
        "KL divergence from the reference: mean {kl_mean:.6f}, 99th percentile {kl_p99:.6f}, maximum {kl_max:.6f}\n"
        "same most likely token: {same_top:.2%}".format(
            perplexity=math.exp(differences["reference_nll"]),
            ratio=math.exp(differences["nll_difference"]),
            **differences,
        )
    )


def _windows(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yields consecutive windows, without a last window of one token, which would predict nothing."""
    for start in range(0, len(ids), size):
        window = ids[start : start + size]
        if len(window) > 1:
            yield window


def _with_progress(windows: Sequence[Sequence[int]]) -> Iterable[Sequence[int]]:
    """Returns the windows, and shows the progress of an iteration over them."""
    from rich.progress import track

    return track(windows, "Reading", console=stderr_console(), transient=True, disable=not is_watched())
