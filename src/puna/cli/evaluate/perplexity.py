"""`puna eval perplexity`: perplexity with the definitions of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.evaluate.common import Limit, column_option, columns_of, existing_text, progress, show_metrics
from puna.cli.loading import Loader
from puna.cli.prompt import read_file
from puna.cli.terminal import command

TextData = Annotated[
    str, typer.Argument(metavar="DATA", help="Text file, or a data set with a column of texts (JSONL, CSV, ...).")
]


@command(
    {
        "puna eval perplexity text.txt": "the default model, a text as one document",
        "puna eval perplexity articles.jsonl -m model.gguf --adapter my-adapter": "each row as a document",
    },
    {
        "documents, tokens": "numbers of documents and of their tokens, all of which are predicted",
        "nll": "mean negative log-likelihood, in nats per token",
        "perplexity": "exp(nll)",
        "word_perplexity, byte_perplexity, bits_per_byte": "the same per word and per byte, as in lm-eval",
    },
)
def perplexity(
    data: TextData,
    model: options.Model = None,
    adapter: options.Adapter = None,
    text_column: Annotated[str | None, column_option("text", "text")] = None,
    limit: Limit = None,
    context: Annotated[
        int | None, options.number("--context", "-c", low=2, help="Tokens per window. [default: the model's context]")
    ] = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Measure the perplexity of documents, as lm-eval does.

    Each document is read alone, after the BOS token. A document longer than the context is split into windows; each
    token is predicted once. `puna perplexity` measures as llama.cpp does, and compares two models.
    """
    from puna.evaluation.perplexity import evaluate_perplexity, read_documents

    if existing_text(Path(data)):
        documents = [read_file(Path(data))]
    else:
        documents = read_documents(data, columns_of(text=text_column))[:limit]
    _, llm = Loader(backend, threads, device, dtype, quantize, max_batch=16, adapter=adapter).load(model)
    with progress(len(documents), "Reading") as advance:
        metrics = evaluate_perplexity(llm, documents, adapter=adapter, limit=context, progress=advance)
    show_metrics(metrics, json)
