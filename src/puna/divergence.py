"""Compares the predictions of two models on the same tokens: Kullback-Leibler divergence and negative log-likelihood.

The definitions are those of llama.cpp's `llama-perplexity --kl-divergence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.errors import RequestError, show


class LogitsModel(Protocol):
    """A model that yields its logits for given tokens, such as `LLM`."""

    def iter_logits(self, token_ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yields the logits after each token in parts: float32, (tokens, vocab_size)."""


@dataclass(frozen=True)
class Divergence:
    """Differences between a model's predictions and a reference model's, for each predicted token."""

    kl: NDArray[np.float64]
    """Sum over the vocabulary of p_reference * (log p_reference - log p_model), in nats."""
    same_top: NDArray[np.bool_]
    """Whether both models consider the same token most likely; ties: the token with the lowest id."""
    nll: NDArray[np.float64]
    """Negative log-likelihood of the token according to the model, in nats."""
    reference_nll: NDArray[np.float64]
    """Negative log-likelihood of the token according to the reference, in nats."""

    def summary(self) -> dict[str, float]:
        """Returns means over the tokens, and the 99th percentile (interpolated linearly) and maximum of `kl`."""
        reference_nll = float(self.reference_nll.mean())
        return {
            "reference_nll": reference_nll,
            "nll_difference": float(self.nll.mean()) - reference_nll,
            "kl_mean": float(self.kl.mean()),
            "kl_p99": float(np.quantile(self.kl, 0.99)),
            "kl_max": float(self.kl.max()),
            "same_top": float(self.same_top.mean()),
        }


def measure_divergence(model: LogitsModel, reference: LogitsModel, windows: Iterable[Sequence[int]]) -> Divergence:
    """Runs both models on windows of token ids. The first token of each window is not predicted.

    At any time, only the logits of one part of a window are in memory. Probabilities are computed in float64.
    """
    tokens = [
        _compare(row, reference_row, target)
        for window in windows
        for row, reference_row, target in zip(
            _rows(model, window[:-1]), _rows(reference, window[:-1]), window[1:], strict=True
        )
    ]
    kl, same_top, nll, reference_nll = zip(*tokens, strict=True)
    return Divergence(np.array(kl), np.array(same_top), np.array(nll), np.array(reference_nll))


def check_same_vocabulary(vocabulary: Mapping[str, int], reference: Mapping[str, int]) -> None:
    """Checks that no id belongs to different tokens in two vocabularies, which map tokens to ids.

    Raises:
        RequestError: an id does; the message names the lowest one and its tokens.
    """
    names = {number: token for token, number in reference.items()}
    differing = sorted((number, token) for token, number in vocabulary.items() if names.get(number, token) != token)
    if differing:
        number, token = differing[0]
        raise RequestError(
            f"token {number} is {show(token)} in the model's vocabulary, but {show(names[number])} in the reference "
            f"model's, and {len(differing)} tokens differ in total; use a reference model with the same vocabulary"
        )


def _rows(model: LogitsModel, window: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Yields the logits after each token of a window: float32, (vocab_size,)."""
    return chain.from_iterable(model.iter_logits(window))


def _compare(
    logits: NDArray[np.float32], reference: NDArray[np.float32], target: int
) -> tuple[float, bool, float, float]:
    """Returns the values of `Divergence` for one token."""
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    kl = float(np.exp(log_p) @ (log_p - log_q))
    return kl, bool(logits.argmax() == reference.argmax()), -float(log_q[target]), -float(log_p[target])


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted
