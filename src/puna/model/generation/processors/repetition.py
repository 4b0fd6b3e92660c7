"""Processors that penalise, encourage or forbid tokens that already occur in the row or the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.checks import check_tensor
from puna.model.generation.processors.base import LogitsProcessor, check_integer, check_positive_float


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Divides the positive and multiplies the negative scores of tokens that a row already has.

    Args:
        penalty: greater than 1 discourages repetition, less than 1 encourages it.
        prompt_ignore_length: number of tokens at the start of each row that do not count: an integer, or (rows,).
    """

    def __init__(self, penalty: float, prompt_ignore_length: int | Tensor | None = None) -> None:
        check_positive_float("penalty", penalty)
        if isinstance(prompt_ignore_length, Tensor):
            if prompt_ignore_length.dim() != 1:
                raise RequestError(f"prompt_ignore_length has {prompt_ignore_length.dim()} dimensions; it must have 1")
        elif prompt_ignore_length is not None:
            check_integer("prompt_ignore_length", prompt_ignore_length, 0)
        self.penalty = penalty
        self.prompt_ignore_length = prompt_ignore_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        ignored = self.prompt_ignore_length
        if isinstance(ignored, int):
            input_ids = input_ids[:, ignored:]
        elif ignored is not None:
            if len(ignored) != len(input_ids):
                raise RequestError(
                    f"prompt_ignore_length has {len(ignored)} values for {len(input_ids)} rows; pass one value per row"
                )
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            too_early = positions < ignored.to(input_ids.device)[:, None]
            input_ids = input_ids.masked_fill(too_early, scores.shape[-1])
        return penalise_tokens(scores, input_ids, self.penalty)


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Multiplies the positive and divides the negative scores of the prompt's tokens, which encourages them.

    The name comes from models with an encoder. A decoder-only model uses its prompt instead.

    Args:
        penalty: greater than 1 encourages the prompt's tokens, less than 1 discourages them.
        encoder_input_ids: (prompts, tokens); every prompt has the same number of adjacent rows.
    """

    def __init__(self, penalty: float, encoder_input_ids: Tensor) -> None:
        check_positive_float("penalty", penalty)
        self.penalty = 1 / penalty
        self.encoder_input_ids = encoder_input_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return penalise_tokens(scores, _repeat_for_rows(self.encoder_input_ids, len(scores)), self.penalty)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids tokens that would complete an n-gram that the row already contains."""

    def __init__(self, ngram_size: int) -> None:
        check_integer("ngram_size", ngram_size, 1)
        self.ngram_size = ngram_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return forbid_ngrams(scores, input_ids, input_ids, self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Forbids tokens that would complete an n-gram of the prompt.

    Args:
        encoder_input_ids: (prompts, tokens) or (tokens,); every prompt has the same number of adjacent rows.
    """

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: Tensor) -> None:
        check_integer("encoder_ngram_size", encoder_ngram_size, 1)
        check_tensor("encoder_input_ids", encoder_input_ids)
        self.ngram_size = encoder_ngram_size
        self.encoder_input_ids = encoder_input_ids.reshape(-1, encoder_input_ids.shape[-1])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return forbid_ngrams(scores, input_ids, _repeat_for_rows(self.encoder_input_ids, len(scores)), self.ngram_size)


def penalise_tokens(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Divides the positive and multiplies the negative scores of the tokens in `ids`, (rows, tokens), by `penalty`.

    Ids outside the vocabulary have no effect. CTRL (arXiv:1909.05858), section 4.1; the rule for negative scores is
    that of transformers.
    """
    vocabulary = scores.shape[-1]
    padded = torch.nn.functional.pad(scores, (0, 1))  # the last column absorbs ids outside the vocabulary
    ids = ids.to(scores.device).clamp(max=vocabulary)
    old = padded.gather(1, ids)
    return padded.scatter(1, ids, torch.where(old < 0, old * penalty, old / penalty))[:, :vocabulary]


def forbid_ngrams(scores: Tensor, ids: Tensor, source: Tensor, size: int) -> Tensor:
    """Forbids tokens that, after the end of `ids`, (rows, tokens), would complete an n-gram of `source`, (rows, n)."""
    if source.shape[1] < size or ids.shape[1] < size - 1:
        return scores
    vocabulary = scores.shape[-1]
    end = ids[:, ids.shape[1] - size + 1 :]  # (rows, size - 1)
    ngrams = source.unfold(1, size, 1)  # (rows, n - size + 1, size)
    repeated = (ngrams[..., :-1] == end[:, None]).all(dim=-1)
    tokens = torch.where(repeated, ngrams[..., -1].clamp(max=vocabulary), vocabulary)
    forbidden = scores.new_zeros((len(scores), vocabulary + 1), dtype=torch.bool).scatter(1, tokens, True)
    return scores.masked_fill(forbidden[:, :vocabulary], float("-inf"))


def _repeat_for_rows(prompts: Tensor, rows: int) -> Tensor:
    """Repeats each prompt, (prompts, tokens), for its adjacent rows: (rows, tokens)."""
    return prompts.repeat_interleave(rows // len(prompts), dim=0) if rows > len(prompts) else prompts
