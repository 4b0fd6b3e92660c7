"""Processors that change or forbid the tokens that would complete certain sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.processors.base import EndTokens, LogitsProcessor, end_tokens


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a bias to the score of each token that would complete a biased sequence at the end of a row.

    Args:
        sequence_bias: a dictionary from tuples of token ids to floats, or a list of `[token ids, float]`.
    """

    def __init__(self, sequence_bias: Mapping[tuple[int, ...], float] | Sequence[Sequence[Any]]) -> None:
        self.sequence_bias = _read_biases(sequence_bias)
        self._groups: list[BiasGroup] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores.

        Raises:
            RequestError: a token is outside the vocabulary.
        """
        if self._groups is None:
            _check_vocabulary(self.sequence_bias, scores.shape[-1])
            self._groups = group_biases(self.sequence_bias, scores.device)
        return add_biases(scores, input_ids, self._groups)


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """Forbids tokens that complete one of the sequences; a sequence that is only an end token has no effect.

    Args:
        bad_words_ids: lists of token ids.
    """

    def __init__(self, bad_words_ids: list[list[int]], eos_token_id: EndTokens | None = None) -> None:
        if not isinstance(bad_words_ids, list) or not bad_words_ids:
            raise RequestError(f"bad_words_ids is {bad_words_ids!r}; it must be a list of lists of ids, not empty")
        for word in bad_words_ids:
            if not isinstance(word, list) or not _are_ids(word):
                raise RequestError(
                    f"bad_words_ids contains {word!r}; each word must be a list of token ids, 0 or greater"
                )
        self.bad_word_ids = bad_words_ids
        ends = [] if eos_token_id is None else end_tokens(eos_token_id).tolist()
        words = [word for word in bad_words_ids if word not in [[end] for end in ends]]
        self.sequence_bias = {tuple(word): float("-inf") for word in words}
        self._groups = None


@dataclass(frozen=True)
class BiasGroup:
    """Sequences of equal length."""

    prefixes: Tensor  # (n, length - 1), int64
    tokens: Tensor  # (n,), int64: the last token of each sequence
    biases: Tensor  # (n,), float32


def group_biases(biases: Mapping[tuple[int, ...], float], device: torch.device) -> list[BiasGroup]:
    """Returns the sequences grouped by length, those of one token first."""
    lengths = dict.fromkeys([1, *map(len, biases)])
    groups = [[(ids, bias) for ids, bias in biases.items() if len(ids) == length] for length in lengths]
    return [
        BiasGroup(
            torch.tensor([ids[:-1] for ids, _ in group], dtype=torch.long, device=device).reshape(len(group), -1),
            torch.tensor([ids[-1] for ids, _ in group], dtype=torch.long, device=device),
            torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device),
        )
        for group in groups
        if group
    ]


def add_biases(scores: Tensor, ids: Tensor, groups: Sequence[BiasGroup]) -> Tensor:
    """Adds the biases of the sequences that each row of `ids`, (rows, tokens), could complete with its next token."""
    total = torch.zeros_like(scores)
    for group in groups:
        length = group.prefixes.shape[1]
        if length > ids.shape[1]:
            continue
        end = ids[:, None, ids.shape[1] - length :]  # (rows, 1, length)
        matches = (end == group.prefixes).all(dim=-1)  # (rows, n)
        total.scatter_add_(
            1, group.tokens.expand(len(ids), -1), torch.where(matches, group.biases, 0.0).to(total.dtype)
        )
    return scores + total


def _read_biases(sequence_bias: Any) -> dict[tuple[int, ...], float]:
    """Returns the biases as a dictionary; raises RequestError if the argument has another form."""
    if not isinstance(sequence_bias, dict | list) or not sequence_bias:
        raise RequestError(
            f"sequence_bias is {sequence_bias!r}; it must be a dictionary from tuples of token ids to floats, or a "
            "list of [token ids, float], not empty"
        )
    if isinstance(sequence_bias, list):
        for entry in sequence_bias:
            if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[0], list | tuple):
                raise RequestError(f"sequence_bias contains {entry!r}; each entry must be [token ids, float]")
        sequence_bias = {tuple(entry[0]): entry[1] for entry in sequence_bias}
    for ids, bias in sequence_bias.items():
        if not isinstance(ids, tuple) or not _are_ids(ids):
            raise RequestError(
                f"sequence_bias has the sequence {ids!r}; it must be a tuple of token ids, 0 or greater, not empty"
            )
        if not isinstance(bias, float):
            raise RequestError(f"sequence_bias of {ids!r} is {bias!r}; it must be a float, such as {2.0}")
    return dict(sequence_bias)


def _are_ids(sequence: Sequence[Any]) -> bool:
    """Returns whether the sequence contains at least one value, and only integers that are not negative."""
    return bool(sequence) and all(isinstance(index, Integral) and int(index) >= 0 for index in sequence)


def _check_vocabulary(biases: Mapping[tuple[int, ...], float], vocabulary: int) -> None:
    outside = sorted({index for ids in biases for index in ids if index >= vocabulary})
    if outside:
        raise RequestError(
            f"the sequences contain the tokens {outside}, but the vocabulary has {vocabulary} tokens; "
            "remove them from sequence_bias or bad_words_ids"
        )
