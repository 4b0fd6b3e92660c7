"""Warpers: the temperature, and filters that remove unlikely tokens before one is sampled.

The functions do not modify their arguments. They set the scores of removed tokens to `value`, and keep at least the
`keep` tokens with the highest scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.model.generation.processors.base import LogitsWarper, check_integer, check_positive_float, number

REMOVED = float("-inf")

_TOP_H_CANDIDATES = 100
"""Number of most likely tokens that top-h considers, as in transformers 5."""


class TemperatureLogitsWarper(LogitsWarper):
    """Divides the scores by the temperature."""

    def __init__(self, temperature: float) -> None:
        check_positive_float("temperature", temperature, "; do_sample=False chooses the most likely token")
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return scores / self.temperature


class TopKLogitsWarper(LogitsWarper):
    """Keeps the `top_k` most likely tokens, and all tokens tied with the last of them."""

    def __init__(self, top_k: int, filter_value: float = REMOVED, min_tokens_to_keep: int = 1) -> None:
        check_integer("top_k", top_k, 1)
        check_integer("min_tokens_to_keep", min_tokens_to_keep, 0)
        self.top_k = max(top_k, min_tokens_to_keep)
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return keep_top_k(scores, self.top_k, self.filter_value)


class TopPLogitsWarper(LogitsWarper):
    """Keeps the smallest set of most likely tokens with a total probability of at least `top_p`."""

    def __init__(self, top_p: float, filter_value: float = REMOVED, min_tokens_to_keep: int = 1) -> None:
        self.top_p = number("top_p", top_p, "from 0 to 1", 0, 1)
        check_integer("min_tokens_to_keep", min_tokens_to_keep, 1)
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return keep_top_p(scores, self.top_p, self.filter_value, self.min_tokens_to_keep)


class MinPLogitsWarper(LogitsWarper):
    """Keeps tokens with at least `min_p` times the probability of the most likely token."""

    def __init__(self, min_p: float, filter_value: float = REMOVED, min_tokens_to_keep: int = 1) -> None:
        number("min_p", min_p, "from 0 to 1", 0, 1)
        check_integer("min_tokens_to_keep", min_tokens_to_keep, 1)
        self.min_p = min_p
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return keep_min_p(scores, self.min_p, self.filter_value, self.min_tokens_to_keep)


class TopHLogitsWarper(LogitsWarper):
    """Keeps the most likely tokens until their part of the entropy exceeds `top_h` (arXiv:2509.02510)."""

    def __init__(self, top_h: float, filter_value: float = REMOVED) -> None:
        number("top_h", top_h, "greater than 0, at most 1", 0, 1, "(]")
        self.top_h = top_h
        self.top_n = _TOP_H_CANDIDATES
        self.filter_value = filter_value

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return keep_top_h(scores, self.top_h, self.top_n, self.filter_value)


class TypicalLogitsWarper(LogitsWarper):
    """Keeps tokens whose surprise is close to the entropy, with a total probability of `mass` (arXiv:2202.00666)."""

    def __init__(self, mass: float = 0.9, filter_value: float = REMOVED, min_tokens_to_keep: int = 1) -> None:
        self.mass = number("typical_p", mass, "greater than 0 and less than 1", 0, 1, "()")
        check_integer("min_tokens_to_keep", min_tokens_to_keep, 1)
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return keep_typical(scores, self.mass, self.filter_value, self.min_tokens_to_keep)


class EpsilonLogitsWarper(LogitsWarper):
    """Keeps tokens with a probability of at least `epsilon` (arXiv:2210.15191)."""

    def __init__(self, epsilon: float, filter_value: float = REMOVED, min_tokens_to_keep: int = 1) -> None:
        self.epsilon = _check_cutoff("epsilon_cutoff", epsilon)
        self.filter_value = filter_value
        self.min_tokens_to_keep = _check_minimum(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return keep_above(scores, scores.new_tensor(self.epsilon), self.filter_value, self.min_tokens_to_keep)


class EtaLogitsWarper(LogitsWarper):
    """Keeps tokens whose probability is at least a limit that falls with the entropy (arXiv:2210.15191).

    The limit is min(epsilon, sqrt(epsilon) exp(-entropy)).
    """

    def __init__(
        self, epsilon: float, filter_value: float = REMOVED, min_tokens_to_keep: int = 1, device: Any = "cpu"
    ) -> None:
        self.epsilon = torch.tensor(_check_cutoff("eta_cutoff", epsilon), device=device)
        self.filter_value = filter_value
        self.min_tokens_to_keep = _check_minimum(min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        epsilon = self.epsilon.to(scores.device)
        limit = torch.min(epsilon, epsilon.sqrt() * torch.exp(-entropy(scores)))
        return keep_above(scores, limit[:, None], self.filter_value, self.min_tokens_to_keep)


def top_k_top_p_filtering(
    logits: Tensor, top_k: int = 0, top_p: float = 1.0, filter_value: float = REMOVED, min_tokens_to_keep: int = 1
) -> Tensor:
    """Applies top-k, unless it is 0, then top-p; a function of transformers 4.34 that 5 does not have.

    Args:
        logits: (rows, vocabulary).
    """
    if top_k > 0:
        logits = keep_top_k(logits, max(top_k, min_tokens_to_keep), filter_value)
    return keep_top_p(logits, top_p, filter_value, min_tokens_to_keep) if 0 <= top_p <= 1 else logits


def keep_top_k(scores: Tensor, k: int, value: float = REMOVED) -> Tensor:
    """Keeps the k most likely tokens, and all tokens tied with the k-th."""
    return scores.masked_fill(scores < _kth(scores, k), value)


def keep_top_p(scores: Tensor, p: float, value: float = REMOVED, keep: int = 1) -> Tensor:
    """Keeps the smallest set of most likely tokens with total probability >= p (arXiv:1904.09751).

    Probabilities are summed in ascending order, as in transformers, so that small ones are not lost to rounding.
    """
    ordered, order = scores.sort(dim=-1)
    unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    unlikely[:, -keep:] = False
    return scores.masked_fill(unlikely.scatter(1, order, unlikely), value)


def keep_min_p(scores: Tensor, p: float, value: float = REMOVED, keep: int = 1) -> Tensor:
    """Keeps tokens with at least p times the probability of the most likely token (arXiv:2407.01082)."""
    probabilities = scores.softmax(dim=-1)
    unlikely = probabilities < p * probabilities.amax(dim=-1, keepdim=True)
    most_likely = probabilities.topk(min(keep, scores.shape[-1]), dim=-1).indices
    return scores.masked_fill(unlikely.scatter(-1, most_likely, False), value)


def keep_top_h(scores: Tensor, h: float, candidates: int = _TOP_H_CANDIDATES, value: float = REMOVED) -> Tensor:
    """Keeps the most likely tokens while their terms of the entropy add up to at most h times the entropy.

    The entropy is that of the `candidates` most likely tokens. At least one token is kept.
    """
    top, order = scores.topk(min(candidates, scores.shape[-1]), dim=-1)
    probabilities = (top - top.logsumexp(dim=-1, keepdim=True)).softmax(dim=-1)
    terms = -probabilities * probabilities.log()
    kept = terms.cumsum(dim=-1) <= entropy(top)[:, None] * h
    kept[:, 0] = True
    return torch.full_like(scores, value).scatter(1, order, torch.where(kept, top, value))


def keep_typical(scores: Tensor, mass: float, value: float = REMOVED, keep: int = 1) -> Tensor:
    """Keeps the tokens whose surprise is closest to the entropy, with a total probability of at least `mass`.

    Ties with the last of these tokens are kept, too, and always the closest `keep` tokens.
    """
    logs = scores.log_softmax(dim=-1)
    entropies = -(logs * logs.exp()).nansum(dim=-1, keepdim=True)
    distances, order = (-logs - entropies).abs().sort(dim=-1)
    cumulative = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
    last = (cumulative < mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    unlikely = distances > distances.gather(1, last)
    unlikely[:, :keep] = False
    return scores.masked_fill(unlikely.scatter(1, order, unlikely), value)


def keep_above(scores: Tensor, limit: Tensor, value: float = REMOVED, keep: int = 1) -> Tensor:
    """Keeps tokens with a probability of at least `limit`, (rows, 1) or one value, and the `keep` most likely ones."""
    return scores.masked_fill((scores.softmax(dim=-1) < limit) & (scores < _kth(scores, keep)), value)


def entropy(scores: Tensor) -> Tensor:
    """Returns the entropy of each row in nats, (rows,); tokens with a score of minus infinity contribute 0."""
    logs = scores - scores.logsumexp(dim=-1, keepdim=True)
    return -(logs.clamp(min=torch.finfo(logs.dtype).min) * logs.softmax(dim=-1)).sum(dim=-1)


def _kth(scores: Tensor, k: int) -> Tensor:
    """Returns the k-th highest score of each row, (rows, 1), or the lowest one if there are fewer than k."""
    return scores.topk(min(k, scores.shape[-1]), dim=-1).values[:, -1:]


def _check_cutoff(name: str, value: Any) -> float:
    return number(name, value, "greater than 0 and less than 1", 0, 1, "()")


def _check_minimum(value: Any) -> int:
    check_integer("min_tokens_to_keep", value, 1)
    return int(value)
