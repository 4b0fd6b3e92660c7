"""Greedy search: the most likely token at each step."""

from __future__ import annotations

from torch import Tensor

from puna.model.generation.loop import Decoding, decode
from puna.model.generation.outputs import GenerateDecoderOnlyOutput


def greedy_search(decoding: Decoding) -> GenerateDecoderOnlyOutput:
    """Continues each row of the prompt with the most likely tokens."""
    return decode(decoding, most_likely)


def most_likely(scores: Tensor) -> Tensor:
    """Returns the most likely token of each row, (rows,), from scores, (rows, vocab)."""
    return scores.argmax(dim=-1)
