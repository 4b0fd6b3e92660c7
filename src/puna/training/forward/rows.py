"""Rows of a batch: which hidden states predict supervised tokens, and the position of each token in its document."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from puna.model.llama import LlamaModel
from puna.training.batch import Batch, derived_seed
from puna.training.methods.base import Trainable

_NOISE = 1 << 32
"""Separates the random numbers of noise from those of the dropout of layers, whose counters are small."""


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


def with_noise(x: Tensor, batch: Batch, alpha: float) -> Tensor:
    """Returns embeddings, (T, D), with the noise of NEFTune (arXiv:2310.05914).

    The noise of a document of n tokens is uniform between -alpha / sqrt(n D) and alpha / sqrt(n D).
    """
    noise = torch.empty(x.shape)
    for seed, part in zip(batch.seeds, torch.split(noise, list(batch.lengths)), strict=True):
        limit = alpha / math.sqrt(part.numel())
        part.uniform_(-limit, limit, generator=torch.Generator().manual_seed(derived_seed(seed, _NOISE)))
    return x + noise.to(x)


def decoder_of(trainable: Trainable) -> LlamaModel:
    """Returns the decoder of a model: the model itself, or its part below the head."""
    decoder = trainable.model.get_decoder()
    assert isinstance(decoder, LlamaModel)
    return decoder


def positions(lengths: tuple[int, ...], start: int = 0) -> Tensor:
    """Returns the position of each token in its document, (T,) int64; each document starts at `start`."""
    return torch.cat([torch.arange(start, start + length) for length in lengths])


def prepend(x: Tensor, lengths: tuple[int, ...], prompt: Tensor | None) -> Tensor:
    """Returns embeddings, (T, D), with the virtual tokens of a prompt, (N, D), before each document."""
    if prompt is None:
        return x
    virtual = prompt.to(x.dtype)
    return torch.cat([part for document in torch.split(x, list(lengths)) for part in (virtual, document)])


def remove(x: Tensor, lengths: tuple[int, ...], count: int) -> Tensor:
    """Returns the rows of x of real tokens, (T, D); `count` virtual tokens precede each document."""
    return x[positions(tuple(count + length for length in lengths)) >= count] if count else x
