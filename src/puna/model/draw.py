"""`draw`: the token choice of `puna.config.Sampling` in PyTorch. It chooses the same tokens as csrc/sampling.cpp.

Tensors have one row per sequence: B rows, V token ids. Probabilities are computed in float64. The native library uses
float32, so the chosen tokens differ if a random number or a limit is within 2e-6 of a cumulative probability, which
is rare. `model.generate()` has its own options: see generation/processors/.
"""

from __future__ import annotations

import torch
from torch import Tensor

from puna.config import Sampling


def draw(
    logits: Tensor, sampling: Sampling, seen: Tensor, generated: Tensor, uniforms: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Returns the next token of each row: int64, (B,).

    Args:
        logits: float32, (B, V), finite.
        seen: bool, (B, V): tokens of the prompt or the answer.
        generated: integers, (B, V): how often each token is in the answer.
        uniforms: float64, (B,): random numbers in [0, 1). The first token is chosen, in the order of ids, whose
            cumulative probability exceeds the number.
        allowed: bool, (B, V): tokens that may be chosen, at least one per row; None allows all.
    """
    logits = change_logits(logits, sampling, seen, generated)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores = (logits.double() - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k > 0:
        order = logits.argsort(dim=-1, descending=True, stable=True)
        scores = scores.scatter(-1, order[:, sampling.top_k :], float("-inf"))
    weights = keep_likely(scores, sampling).exp()
    if sampling.typical_p < 1:
        weights = keep_typical(weights, sampling.typical_p)
    cumulative = weights.cumsum(dim=-1)  # (B, V)
    return (cumulative > uniforms[:, None] * cumulative[:, -1:]).int().argmax(dim=-1)


def change_logits(logits: Tensor, sampling: Sampling, seen: Tensor, generated: Tensor) -> Tensor:
    """Returns the logits with the bias and the penalties: float32, each computed in float64 and rounded once."""
    largest = torch.finfo(torch.float32).max
    if sampling.logit_bias:
        bias = torch.zeros(logits.shape[-1], dtype=torch.float64, device=logits.device)
        bias[list(sampling.logit_bias)] = bias.new_tensor(list(sampling.logit_bias.values()))
        logits = (logits.double() + bias).float()
    if not sampling.counts_tokens:
        return logits
    values, penalty = logits.double(), sampling.repetition_penalty
    penalised = torch.where(values > 0, values / penalty, values * penalty)
    penalised = penalised - generated * sampling.frequency_penalty
    penalised = penalised - sampling.presence_penalty * (generated > 0)
    return torch.where(seen, penalised.clamp(-largest, largest), values).float()


def keep_likely(scores: Tensor, sampling: Sampling) -> Tensor:
    """Applies top-p and min-p to log-probabilities whose maximum is 0: dropped tokens become minus infinity."""
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        weights = ordered.exp()
        before = weights.cumsum(dim=-1) - weights  # total weight of the more likely tokens
        dropped = before >= sampling.top_p * weights.sum(dim=-1, keepdim=True)
        dropped[:, 0] = False
        scores = scores.masked_fill(dropped.scatter(-1, order, dropped), float("-inf"))
    if sampling.min_p > 0:
        scores = scores.masked_fill(scores.exp() < sampling.min_p, float("-inf"))
    return scores


def keep_typical(weights: Tensor, mass: float) -> Tensor:
    """Sets the weights of tokens to 0 whose surprise is far from the entropy (arXiv:2202.00666).

    The tokens that are closest to the entropy, with a total probability of at least `mass`, are kept, and all tokens
    that are as close as the last of them.
    """
    probabilities = weights / weights.sum(dim=-1, keepdim=True)
    surprise = -probabilities.log()  # infinite for dropped tokens
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    distance = (surprise - entropy).abs()
    ordered, order = distance.sort(dim=-1)
    reached = probabilities.gather(-1, order).cumsum(dim=-1) >= mass
    last = torch.where(reached.any(dim=-1), reached.int().argmax(dim=-1), (weights > 0).sum(dim=-1) - 1)
    return weights.masked_fill(distance > ordered.gather(-1, last[:, None]), 0.0)
