"""The task `classify`: a head on the last token of each text, with the losses of LlamaForSequenceClassification.

Legend: T tokens of all texts of a batch, B texts, C classes, D hidden.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from puna.checkpoint import locate_model, open_checkpoint
from puna.config.labels import last_token
from puna.errors import ConfigError, show
from puna.model import LlamaForSequenceClassification, LlamaPreTrainedModel
from puna.tokenizer import PreTrainedTokenizerBase
from puna.training.batch import Batch
from puna.training.forward.base import Forward
from puna.training.metrics import evaluate_labels, roc_points
from puna.training.settings import TrainingSettings
from puna.training.tasks.base import Examples, Task
from puna.training.tasks.labelled import LabelledExamples, read_labelled
from puna.training.tasks.labels import Labels


class Classify(Task):
    """One label per text, several labels, or a regression."""

    _labels: Labels
    _model: LlamaForSequenceClassification
    _weights: Tensor | None = None  # (C,)

    def read(self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase) -> LabelledExamples:
        """Returns the examples of the training data, which determine the labels."""
        examples = read_labelled(data, settings, tokenizer, progress=self.progress)
        self._labels = examples.labels
        if settings.problem == "auto" and self._labels.problem == "regression":
            self.notes = (
                "problem: the labels are numbers, some of them with a fraction, so that this is a regression; if they "
                "are names of classes, set problem to single and write them as texts (in JSON with quotation marks)",
            )
        self._weights = _class_weights(examples, settings)
        return examples

    def read_held_out(
        self, data: Any, settings: TrainingSettings, tokenizer: PreTrainedTokenizerBase
    ) -> LabelledExamples:
        """Returns the examples of held-out data, whose labels are those of the training data."""
        return read_labelled(data, settings, tokenizer, self._labels, self.progress)

    def load_model(
        self, settings: TrainingSettings, examples: Examples, keep_quantized: bool = False
    ) -> LlamaPreTrainedModel:
        """Returns the model with a head for the labels; a head of the model that has the same labels is kept.

        Raises:
            ConfigError: the model is a classifier with other labels.
        """
        checkpoint = open_checkpoint(locate_model(settings.model or None))
        trained = tuple(checkpoint.config.id2label.values()) if checkpoint.head == "classification" else None
        if trained not in (None, self._labels.names):
            raise ConfigError(
                f"{settings.model}: the model is a classifier with the labels {', '.join(map(show, trained[:10]))}, "
                f"but the data has {', '.join(map(show, self._labels.names[:10]))}; set labels to those of the model "
                "in their order, or train the language model that it was made from"
            )
        names = dict(enumerate(self._labels.names))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*score.weight.*")  # a new head is intended
            self._model = LlamaForSequenceClassification.from_pretrained(
                checkpoint.path, dtype=getattr(torch, settings.dtype), keep_quantized=keep_quantized, id2label=names,
                label2id={name: index for index, name in names.items()}, problem_type=self._labels.problem,
            )  # fmt: skip
        return self._model

    def weight(self, batch: Batch) -> float:
        """Returns the number of texts, or with class weights of single labels the sum of their weights."""
        if self._weights is None or self._labels.problem != "single_label_classification":
            return batch.total_weight
        return float(self._weights[_targets(batch)].sum())

    def logits(self, forward: Forward, batch: Batch) -> Tensor:
        """Returns the outputs of the head for each text, (B, C) float32."""
        states = forward.hidden(batch)
        ends = torch.from_numpy(last_positions(batch, self._model.config.pad_token_id)).to(states.device)
        return F.linear(states[ends].float(), self._model.score.weight.float())

    def loss(self, forward: Forward, batch: Batch, scale: float) -> Tensor:
        """Returns the summed loss of the texts times `scale`, a scalar.

        The loss of a text is its cross-entropy; with several labels, the mean over C of the binary cross-entropies; of
        a regression, the mean over C of the squared errors. Weights of classes multiply the cross-entropies of the
        texts of a class, or with several labels the part of the loss of the texts that have the label.
        """
        return self._loss(self.logits(forward, batch), batch, scale)

    def _loss(self, logits: Tensor, batch: Batch, scale: float) -> Tensor:
        targets = _targets(batch).to(logits.device)
        weights = None if self._weights is None else self._weights.to(logits.device)
        if self._labels.problem == "single_label_classification":
            return F.cross_entropy(logits, targets, weights, reduction="sum") * scale
        targets = targets.float().reshape(logits.shape)
        if self._labels.problem == "regression":
            return F.mse_loss(logits, targets, reduction="sum") * (scale / logits.shape[1])
        losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return losses * (scale / logits.shape[1])

    def evaluate(self, forward: Forward, batches: Iterable[Batch]) -> dict[str, Any]:
        """Returns the metrics of held-out batches (see `evaluate_labels`), "loss", and "roc", points of ROC curves."""
        total = weight = 0.0
        targets, logits = [], []
        for batch in batches:
            values = self.logits(forward, batch)
            total += float(self._loss(values, batch, 1.0))
            weight += self.weight(batch)
            targets.append(_targets(batch).numpy())
            logits.append(values.double().cpu().numpy())
        rows, labels = np.concatenate(logits), np.concatenate(targets)
        metrics = evaluate_labels(self._labels.problem, labels, rows, self._labels.names)
        roc = roc_points(self._labels.problem, labels, rows, self._labels.names)
        return {**metrics, "loss": total / weight, **({"roc": roc} if roc else {})}


def last_positions(batch: Batch, pad_token_id: int | None) -> NDArray[np.int64]:
    """Returns the index in `batch.ids` of the token of each text whose state the head reads, (B,).

    As in `LLM.classify`, that is the last token which is not the padding token.
    """
    ends = np.cumsum(batch.lengths)
    starts = ends - batch.lengths
    return np.array(
        [
            start + last_token(batch.ids[start:end].tolist(), pad_token_id)
            for start, end in zip(starts, ends, strict=True)
        ]
    )


def _targets(batch: Batch) -> Tensor:
    """Returns the labels of the texts: (B,) int64, or (B,) or (B, C) float32."""
    assert batch.labels is not None, "a text has no label"
    return torch.from_numpy(batch.labels)


def _class_weights(examples: LabelledExamples, settings: TrainingSettings) -> Tensor | None:
    """Returns the weights of the classes, (C,).

    "balanced" is the number of texts divided by that of the class and by C, as in scikit-learn; with several labels,
    the texts without the label divided by those with it.
    """
    labels, weights = examples.labels, settings.class_weights
    if weights is None:
        return None
    if labels.problem == "regression":
        raise ConfigError(f"class_weights is {show(weights)}, but a regression has no classes; leave it out")
    if weights != "balanced":
        if len(weights) != len(labels.names):
            raise ConfigError(
                f"class_weights has {len(weights)} numbers, but there are {len(labels.names)} labels: "
                f"{', '.join(map(show, labels.names[:10]))}"
            )
        return torch.tensor(weights)
    targets = np.array([examples[index].label for index in range(len(examples))])
    if labels.problem == "multi_label_classification":
        counts = targets.sum(axis=0)
        balanced = (len(targets) - counts) / np.maximum(counts, 1)
    else:
        counts = np.bincount(targets, minlength=len(labels.names))
        balanced = len(targets) / (np.maximum(counts, 1) * len(labels.names))
    return torch.from_numpy(balanced.astype(np.float32))
