"""`puna eval classify`: metrics of a classifier on a labelled file."""

from __future__ import annotations

from typing import Annotated

from puna.cli import options
from puna.cli.evaluate.common import Data, column_option, columns_of, show_metrics
from puna.cli.loading import Loader
from puna.cli.terminal import command, status


@command(
    {
        "puna eval classify test.csv -m my-classifier": "a classifier",
        "puna eval classify test.csv --adapter runs/spam --json": "an adapter that classifies; all metrics",
    },
    {
        "texts": "number of texts",
        "loss": "mean cross-entropy, or mean squared error of a regression",
        "accuracy, f1_macro, f1_micro, auc": "of a classification; auc is the mean over the classes",
        "classes": "for each label: precision, recall, f1, auc, texts",
        "confusion_matrix, labels": "number of texts of each label (rows) with each prediction (columns)",
        "mean_squared_error, mean_absolute_error, pearson, spearman": "of a regression",
    },
)
def classify(
    data: Data,
    model: options.Model = None,
    adapter: options.Adapter = None,
    text_column: Annotated[str | None, column_option("text", "text")] = None,
    label_column: Annotated[str | None, column_option("label", "label")] = None,
    backend: options.Backend = "auto",
    threads: options.Threads = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    json: options.Json = False,
) -> None:
    """Measure a classifier on a labelled file.

    The model is a LlamaForSequenceClassification, or has an adapter that classifies. The columns are text and label, or
    usual names of these; the labels are those of the model.
    """
    from puna.evaluation.labels import evaluate_classifier

    loader = Loader(backend, threads, device, dtype, quantize, max_batch=16, generates=False, adapter=adapter)
    _, llm = loader.load(model)
    columns = columns_of(text=text_column, label=label_column)
    with status("Reading texts ..."):
        metrics = evaluate_classifier(llm, data, adapter=adapter, columns=columns or None)
    show_metrics(metrics, json)
