"""The rows of a batch, and what to do about a loss that is not usable, for messages."""

from __future__ import annotations

import math

import torch

from puna.training.batch import Batch
from puna.training.trainer import Trainer

_FEW = 8
"""Number of rows in a message."""


def describe_rows(batch: Batch, trainer: Trainer | None = None) -> str:
    """Returns the rows of a batch in words, such as "train.jsonl, line 7 (loss 9.1)".

    Args:
        trainer: computes the loss of each document alone; the documents with the highest losses are then first.
    """
    documents = list(range(len(batch.lengths)))
    losses = [math.nan] * len(batch.lengths)
    if trainer is not None:
        losses = [_loss(trainer, _document(batch, index)) for index in documents]
        documents.sort(key=lambda index: -math.inf if math.isnan(losses[index]) else -losses[index])
    rows = [
        f"{batch.sources[index]}" + (f" (loss {losses[index]:.4g})" if trainer is not None else "")
        for index in documents[:_FEW]
    ]
    more = len(batch.lengths) - len(rows)
    return "; ".join(rows) + (f"; and {more} more" if more else "")


def remedy(trainer: Trainer) -> str:
    """Returns what to do about a step that cannot be done: a tensor of the model may be the cause, or its rows."""
    for name, tensor in trainer.trainable.model.named_parameters():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"The model's {name} has values that are not finite; train another copy of the model"
    return "Correct these rows or lower the learning rate"


def _document(batch: Batch, index: int) -> Batch:
    start = sum(batch.lengths[:index])
    part = slice(start, start + batch.lengths[index])
    labels = None if batch.labels is None else batch.labels[index : index + 1]
    return Batch(
        batch.ids[part],
        (batch.lengths[index],),
        batch.weights[part],
        labels,
        (batch.sources[index],),
        (batch.seeds[index],),
    )


def _loss(trainer: Trainer, document: Batch) -> float:
    trainer.forward.training = False
    with torch.no_grad():
        weight = trainer.task.weight(document)
        return float(trainer.task.loss(trainer.forward, document, 1 / weight)) if weight else 0.0
