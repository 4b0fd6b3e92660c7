"""Rows of a batch: which hidden states predict supervised tokens, and the position of each token in its document."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from puna.model.llama import LlamaModel
from puna.training.batch import Batch
from puna.training.methods.base import Trainable

_NOISE = 0x4E454654
"""Separates the random numbers of the noise from all others of the same seed."""


@dataclass(frozen=True)
class Supervised:
    """The tokens of a batch that have a loss; S is their number.

    Attributes:
        rows: (S,) int64, the token before each of them, whose hidden state predicts it.
        targets: (S,) int64, their ids.
        weights: (S,) float32, above 0.
    """

    rows: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Supervised:
        """Returns the supervised tokens in their order. The first token of a document is never supervised."""
        index = np.flatnonzero(batch.weights)
        return cls(
            torch.from_numpy(index - 1), torch.from_numpy(batch.ids[index]), torch.from_numpy(batch.weights[index])
        )


def without_last(batch: Batch) -> tuple[Batch, Supervised]:
    """Returns a batch without the last token of each document, which predicts nothing, and its supervised tokens.

    All documents have at least two tokens.
    """
    tokens, ends = Supervised.of(batch), np.cumsum(batch.lengths) - 1
    earlier = np.searchsorted(ends, tokens.rows.numpy())  # documents before that of the row
    lengths = tuple(length - 1 for length in batch.lengths)
    short = replace(batch, ids=np.delete(batch.ids, ends), weights=np.delete(batch.weights, ends), lengths=lengths)
    return short, replace(tokens, rows=tokens.rows - torch.from_numpy(earlier))


def decoder_of(trainable: Trainable) -> LlamaModel:
    """Returns the decoder of a model: the model itself, or its part below the head."""
    decoder = trainable.model.get_decoder()
    assert isinstance(decoder, LlamaModel)
    return decoder


def positions(lengths: tuple[int, ...], start: int = 0) -> Tensor:
    """Returns the position of each token in its document, (T,) int64; each document starts at `start`."""
    return torch.cat([torch.arange(start, start + length) for length in lengths])


def add_noise(x: Tensor, lengths: tuple[int, ...], alpha: float, seed: int | None) -> Tensor:
    """Returns the embeddings of a batch, (T, D), with the noise of NEFTune (arXiv:2310.05914).

    The noise of a document of n tokens is uniform in [-1, 1) times alpha / sqrt(n D). It depends only on the seed and
    the position of an element in the batch, since NumPy promises the bits of Philox in every release.

    Args:
        alpha: 0 for no noise.
        seed: `Batch.seed`; None for no noise, as in evaluations.
    """
    if alpha == 0 or seed is None:
        return x
    key = np.array([seed, _NOISE], np.uint64)
    bits = np.random.Philox(key=key).random_raw(-(-x.numel() // 2)).view(np.uint32)[: x.numel()]
    uniform = (bits >> 8).astype(np.float32) * np.float32(2**-23) - 1
    scales = np.repeat([alpha / math.sqrt(length * x.shape[1]) for length in lengths], lengths).astype(np.float32)
    return x + torch.from_numpy(uniform.reshape(x.shape) * scales[:, None]).to(x)


def prepend(x: Tensor, lengths: tuple[int, ...], prompt: Tensor | None) -> Tensor:
    """Returns embeddings, (T, D), with the virtual tokens of a prompt, (N, D), before each document."""
    if prompt is None:
        return x
    virtual = prompt.to(x.dtype)
    return torch.cat([part for document in torch.split(x, list(lengths)) for part in (virtual, document)])


def remove(x: Tensor, lengths: tuple[int, ...], count: int) -> Tensor:
    """Returns the rows of x of real tokens, (T, D); `count` virtual tokens precede each document."""
    return x[positions(tuple(count + length for length in lengths)) >= count] if count else x
