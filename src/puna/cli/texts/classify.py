"""`puna classify`: the labels of texts."""

from __future__ import annotations

import typer

from puna.cli import options
from puna.cli.loading import Loader
from puna.cli.terminal import command, print_json
from puna.cli.texts.inputs import Texts, read_texts


@command(
    {
        'puna classify -m my-classifier "A lovely film."': "the most likely label and its score",
        "puna classify -m my-classifier --json < reviews.txt": "the scores of all labels for each line, as JSON",
    },
    {
        "results": "for each text: label (the one with the highest score) and scores (for each label, [name, "
        "probability], or the predicted number of a regression)"
    },
)
def classify(
    texts: Texts = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Print the labels of texts.

    The model is a LlamaForSequenceClassification, or has an adapter that classifies. Each line has a label, its score
    and the text.
    """
    inputs = read_texts(texts)
    _, llm = Loader(backend, threads, device, dtype, quantize, max_batch=16, generates=False, adapter=adapter).load(
        model
    )
    results = llm.classify(inputs, adapter=adapter)
    if json:
        scores = [list(map(list, zip(result.labels, result.scores, strict=True))) for result in results]
        labels = [result.label for result in results]
        print_json({"results": [{"label": a, "scores": b} for a, b in zip(labels, scores, strict=True)]})
        return
    for text, result in zip(inputs, results, strict=True):
        typer.echo(f"{result.label}\t{max(result.scores):.4f}\t{text}")
