"""From the last logits to the next token: what is forbidden or made less likely, what is cut off, and the draw.

All functions take logits (rows, vocabulary), float32, and return new ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError


def penalise_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative logits of the tokens in `ids`, (rows, tokens), by `penalty`.

    CTRL (arXiv:1909.05858), section 4.1, with the reference's rule for negative logits.
    """
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def forbid(logits: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Makes `tokens` impossible."""
    return logits.index_fill(1, torch.tensor(tokens, device=logits.device), float("-inf"))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k likeliest tokens, and those as likely as the last of them."""
    if k >= logits.shape[-1]:
        return logits
    least = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest likeliest tokens whose probability reaches p (nucleus sampling, arXiv:1904.09751); at least one.

    Summed from the unlikely end, as the reference does: there the sums are small and exact.
    """
    ordered, order = logits.sort(dim=-1)
    unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    unlikely[:, -1] = False
    return logits.masked_fill(unlikely.scatter(1, order, unlikely), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the tokens at least p times as likely as the likeliest (arXiv:2407.01082)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def warp(logits: Tensor, settings: GenerationConfig) -> Tensor:
    """Temperature, top-k, top-p and min-p, in the reference's order."""
    if settings.temperature != 1.0:
        logits = logits / settings.temperature
    if settings.top_k:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1.0:
        logits = keep_top_p(logits, settings.top_p)
    if settings.min_p:
        logits = keep_min_p(logits, settings.min_p)
    return logits


def samples(settings: GenerationConfig) -> bool:
    """Whether tokens are drawn; a temperature of 0 means the likeliest token, whatever `do_sample` says."""
    return settings.do_sample and settings.temperature > 0


def choose_token(logits: Tensor, settings: GenerationConfig, generator: torch.Generator | None) -> Tensor:
    """The next token of each row, (rows,).

    Raises:
        RequestError: a row's likeliest logit is NaN or infinite, so that no choice means anything.
    """
    best = logits.amax(dim=-1)  # NaN where any logit is
    if not best.isfinite().all():
        row = int((~best.isfinite()).nonzero()[0, 0])
        raise RequestError(
            f"the likeliest logit of row {row} is {float(best[row])}; a finite one is needed. Look at the weights "
            "(NaN? too large for float16?), at logits_processor, or for a temperature near 0"
        )
    if not samples(settings):
        return logits.argmax(dim=-1)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)
