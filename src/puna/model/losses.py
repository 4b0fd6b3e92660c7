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
        count: divides the sum, instead of the number of targets. If a step accumulates the gradients of several
            batches, it is the number of targets in all of them.
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
    targets: Any = labels if shift_labels is None else shift_labels
    if isinstance(targets, Tensor) and ignore_index != IGNORED:
        targets = targets.masked_fill(targets == ignore_index, IGNORED)
    check_classes(targets, tuple(logits.shape[:2]), logits.shape[2])
    if shift_labels is None:
        targets = F.pad(targets[:, 1:], (0, 1), value=IGNORED)  # logits[:, :-1] would be copied
    return mean_cross_entropy(logits.flatten(0, 1), targets.flatten(), count=num_items_in_batch)
