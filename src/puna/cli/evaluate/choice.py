"""`puna eval choice`: multiple choice by log-likelihood."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from puna.cli import options
from puna.cli.evaluate.common import Data, Limit, column_option, columns_of, progress, show_metrics
from puna.cli.loading import Loader
from puna.cli.terminal import command


@command(
    {
        "puna eval choice questions.jsonl": "the default model",
        'puna eval choice arc.parquet --question-column prompt --delimiter " "': "names of columns",
    },
    {
        "questions": "number of questions",
        "acc, acc_stderr": "share of questions whose right choice has the highest log-likelihood; its standard error",
        "acc_norm, acc_norm_stderr": "the same after division by the choice's length in characters",
        "acc_bytes, acc_bytes_stderr": "the same after division by its length in bytes",
    },
)
def choice(
    data: Data,
    model: options.Model = None,
    adapter: options.Adapter = None,
    question_column: Annotated[str | None, column_option("question", "question")] = None,
    choices_column: Annotated[str | None, column_option("choices", "list of choices")] = None,
    answer_column: Annotated[str | None, column_option("answer", "index, text or letter of the right choice")] = None,
    delimiter: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Text between the question and each choice. [default: a space]", show_default=False
        ),
    ] = " ",
    limit: Limit = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Measure how often the right choice is the most likely.

    The columns are question, choices (a list) and answer, or usual names of these. The accuracies are those of
    multiple_choice tasks of lm-eval.
    """
    from puna.evaluation.choice import evaluate_choices, read_questions

    names = columns_of(question=question_column, choices=choices_column, answer=answer_column)
    questions = list(islice(read_questions(data, names), limit))
    _, llm = Loader(backend, threads, device, dtype, quantize, max_batch=16, adapter=adapter).load(model)
    with progress(sum(len(item.choices) for item in questions), "Reading") as advance:
        metrics = evaluate_choices(llm, questions, delimiter=delimiter, adapter=adapter, progress=advance)
    show_metrics(metrics, json, hidden=[name for name in metrics if name.endswith("_stderr")])
