"""Chooses the next token from logits: penalties and filters.

All functions take logits of shape (rows, vocabulary), float32, and do not modify them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from puna.config import GenerationConfig


def penalise_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative logits of the tokens in `ids`, (rows, tokens), by `penalty`.

    CTRL (arXiv:1909.05858), section 4.1; the rule for negative logits is that of transformers.
    """
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def forbid(logits: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Sets the logits of `tokens` to minus infinity."""
    return logits.index_fill(1, torch.tensor(tokens, device=logits.device), float("-inf"))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k most likely tokens, and all tokens tied with the k-th."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[:, -1:]  # (rows, 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the smallest set of most likely tokens with total probability >= p (arXiv:1904.09751); at least one token.

    Probabilities are summed in ascending order, as in transformers, so that small ones are not lost to rounding.
    """
    ordered, order = logits.sort(dim=-1)
    unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    unlikely[:, -1] = False
    return logits.masked_fill(unlikely.scatter(1, order, unlikely), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens with at least p times the probability of the most likely token (arXiv:2407.01082)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def warp(logits: Tensor, settings: GenerationConfig) -> Tensor:
    """Applies temperature, top-k, top-p and min-p, in the order of transformers."""
    if settings.temperature != 1.0:
        logits = logits / settings.temperature
    if settings.top_k > 0:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1.0:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p:
        logits = keep_min_p(logits, settings.min_p)
    return logits


def is_random(settings: GenerationConfig) -> bool:
    """Returns whether tokens are drawn at random; with temperature 0 they are not, regardless of `do_sample`."""
    return settings.do_sample and settings.temperature > 0
