"""Sampling: each token is drawn from the model's distribution, after the processors have changed it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from puna.model.generation.loop import Decoding, decode
from puna.model.generation.outputs import GenerateDecoderOnlyOutput


def sample(decoding: Decoding) -> GenerateDecoderOnlyOutput:
    """Continues each row of the prompt with tokens that are drawn at random."""
    return decode(decoding, draw(decoding))


def draw(decoding: Decoding) -> Callable[[Tensor], Tensor]:
    """Returns the function that draws one token for each row, (rows,), from scores, (rows, vocab)."""

    def choose(scores: Tensor) -> Tensor:
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=decoding.generator).squeeze(1)

    return choose
