"""Losses of the models: cross-entropy in nats, float32. Legend: B batch, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.model.checks import IGNORED, check_classes


def mean_cross_entropy(
    logits: Tensor, targets: Tensor, ignored: int = IGNORED, count: Tensor | float | None = None
) -> Tensor:
    """Returns the mean cross-entropy (nats, float32) of logits (N, V) and targets (N,) that are not `ignored`.

    If all targets are ignored, the loss is 0, because NaN would ruin a training run.

    Args:
        count: the number to divide the sum by, instead of the number of targets: that of all targets of a step, if the
            step accumulates gradients of several batches.
    """
    targets = targets.to(logits.device, torch.long)
    total = F.cross_entropy(logits.float(), targets, ignore_index=ignored, reduction="sum")
    if count is not None:
        return total / (count.to(total.device) if isinstance(count, Tensor) else count)
    return total / (targets != ignored).sum().clamp(min=1)


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int | None = None,
    num_items_in_batch: Tensor | float | None = None,
    ignore_index: int = IGNORED,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """Returns the mean cross-entropy (nats, float32) of logits (B, T, V) at t and labels (B, T) at t + 1.

    Args:
        logits: (B, T, V).
        labels: (B, T); those equal to `ignore_index` are ignored.
        vocab_size: has no effect; an argument of transformers.
        num_items_in_batch: the number to divide the sum by; by default the number of labels that are not ignored.
        ignore_index: the label of positions that are not predicted.
        shift_labels: (B, T) labels at t of the token at t + 1, instead of `labels`.

    Raises:
        RequestError: if labels have an invalid shape or type, or (checked only on the CPU) are outside the vocabulary.
    """
    given: Any = labels if shift_labels is None else shift_labels
    if isinstance(given, Tensor) and ignore_index != IGNORED:
        given = given.masked_fill(given == ignore_index, IGNORED)
    check_classes(given, tuple(logits.shape[:2]), logits.shape[2])
    if shift_labels is None:
        logits, given = logits[:, :-1], given[:, 1:]
    return mean_cross_entropy(logits.flatten(0, 1), given.flatten(), count=num_items_in_batch)
