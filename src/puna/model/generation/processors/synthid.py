"""SynthID text watermarks (doi:10.1038/s41586-024-08025-4): a tournament between tokens, decided by secret keys.

The keys, hashes and tables are those of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.processors.base import LogitsProcessor, as_device

_MULTIPLIER, _INCREMENT = 6364136223846793005, 1
"""The linear congruential generator of newlib and musl."""


@dataclass
class _History:
    """The tokens and hashes that decide whether the next token is marked."""

    context: Tensor  # (rows, ngram_len - 1): the last tokens
    hashes: Tensor  # (rows, context_history_size): hashes of earlier contexts
    calls: int = 0


class SynthIDTextWatermarkLogitsProcessor(LogitsProcessor):
    """Marks the answer by changing the probabilities of tokens according to pseudo-random bits.

    A context of tokens that occurred before is not marked again.

    Args:
        ngram_len: number of tokens that are hashed, the new one included.
        keys: secret numbers, one for each round of the tournament.
        sampling_table_size, sampling_table_seed: the table that turns hashes into bits.
        context_history_size: number of contexts that are remembered.
        device: the device of the scores.
        skip_first_ngram_calls: do not mark the first `ngram_len - 1` tokens.
        debug_mode: use equal scores for all tokens.
    """

    def __init__(
        self,
        ngram_len: int,
        keys: Sequence[int],
        sampling_table_size: int,
        sampling_table_seed: int,
        context_history_size: int,
        device: Any,
        skip_first_ngram_calls: bool = False,
        debug_mode: bool = False,
    ) -> None:
        self.ngram_len = ngram_len
        device = as_device(device)
        self.keys = torch.tensor(keys, device=device)
        generator = torch.Generator(device).manual_seed(sampling_table_seed)
        self.sampling_table = torch.randint(0, 2, (sampling_table_size,), generator=generator, device=device)
        self.context_history_size = context_history_size
        self.device = device
        self.skip_first_ngram_calls = skip_first_ngram_calls
        self.debug_mode = debug_mode
        self.state: _History | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns marked log-probabilities, or unchanged scores for rows whose context occurred before."""
        _check_shape(input_ids)
        if self.debug_mode:
            scores = torch.ones_like(scores)
        if self.state is None:
            self.state = self._new_history(len(scores))
        else:
            self.state.context = torch.cat((self.state.context[:, 1:], input_ids[:, -1:]), dim=1)
        self.state.calls += 1
        if self.skip_first_ngram_calls and self.state.calls < self.ngram_len:
            return scores
        context = hash_tokens(self._ones(len(scores)), self.state.context)  # (rows,)
        tokens = torch.arange(scores.shape[-1], device=scores.device)
        marked = run_tournament(scores, self._bits(hash_tokens(context[:, None], tokens[None, :, None])))
        return torch.where(self._repeated(self.state, context), scores, marked)

    def compute_g_values(self, input_ids: Tensor) -> Tensor:
        """Returns the bits of each n-gram of a text, (rows, tokens): int64, (rows, tokens - ngram_len + 1, keys)."""
        _check_shape(input_ids)
        ngrams = input_ids.unfold(1, self.ngram_len, 1)
        return self._bits(hash_tokens(self._ones(len(input_ids))[:, None], ngrams))

    def compute_context_repetition_mask(self, input_ids: Tensor) -> Tensor:
        """Returns for each n-gram of a text whether its context is new: bool, (rows, tokens - ngram_len + 1)."""
        _check_shape(input_ids)
        history = self._new_history(len(input_ids))
        contexts = input_ids[:, :-1].unfold(1, self.ngram_len - 1, 1)
        hashes = hash_tokens(self._ones(len(input_ids))[:, None], contexts)
        return ~torch.cat([self._repeated(history, column) for column in hashes.unbind(1)], dim=1)

    def compute_eos_token_mask(self, input_ids: Tensor, eos_token_id: int) -> Tensor:
        """Returns 1 for the tokens before the first end token, otherwise 0: int64, (rows, tokens)."""
        _check_shape(input_ids)
        return ((input_ids == eos_token_id).cumsum(dim=1) == 0).long()

    def expected_mean_g_value(self, vocab_size: int, coinflip_prob: float = 0.5) -> float:
        """Returns the expected mean of the bits of a marked text, if all tokens are equally likely."""
        return coinflip_prob + coinflip_prob * (1 - coinflip_prob) * (1 - 1 / vocab_size)

    def _new_history(self, rows: int) -> _History:
        context, hashes = (
            torch.zeros((rows, columns), dtype=torch.long, device=self.device)
            for columns in (self.ngram_len - 1, self.context_history_size)
        )
        return _History(context, hashes)

    def _repeated(self, history: _History, context: Tensor) -> Tensor:
        """Returns whether the hash of each row, (rows,), occurred before, (rows, 1); adds it to the history."""
        repeated = (history.hashes == context[:, None]).any(dim=1, keepdim=True)
        history.hashes = torch.cat((context[:, None], history.hashes[:, :-1]), dim=1)
        return repeated

    def _bits(self, hashes: Tensor) -> Tensor:
        """Returns the bits of hashed n-grams, (rows, n), for all keys: int64, (rows, n, keys)."""
        keyed = hash_tokens(hashes[..., None], self.keys[:, None])
        return self.sampling_table[keyed % len(self.sampling_table)]

    def _ones(self, rows: int) -> Tensor:
        return torch.ones(rows, dtype=torch.long, device=self.device)


def hash_tokens(start: Tensor, tokens: Tensor) -> Tensor:
    """Extends the hashes `start` by the tokens in the last dimension of `tokens`; the others are broadcast."""
    for column in tokens.unbind(-1):
        start = (start + column) * _MULTIPLIER + _INCREMENT
    return start


def run_tournament(scores: Tensor, bits: Tensor) -> Tensor:
    """Returns the log-probabilities of the winners of a tournament with one round per bit, (rows, vocabulary, rounds).

    Probabilities of 0 become the lowest finite number.
    """
    probabilities = scores.softmax(dim=1)
    for bit in bits.unbind(2):
        probabilities = probabilities * (1 + bit - (bit * probabilities).sum(dim=1, keepdim=True))
    logs = probabilities.log()
    return torch.where(logs.isfinite(), logs, torch.finfo(logs.dtype).min)


def _check_shape(ids: Tensor) -> None:
    if ids.dim() != 2:
        raise RequestError(f"input_ids has the shape {tuple(ids.shape)}; it must be (rows, tokens)")
