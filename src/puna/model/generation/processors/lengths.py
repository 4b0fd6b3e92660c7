"""Processors that depend on the number of tokens: minimum lengths, forced first and last tokens, a length penalty."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError, show
from puna.model.generation.processors.base import (
    EndTokens,
    LogitsProcessor,
    check_integer,
    end_tokens,
    forbid,
    force,
    token_tensor,
)


class MinLengthLogitsProcessor(LogitsProcessor):
    """Forbids end tokens until prompt and answer together have `min_length` tokens."""

    def __init__(self, min_length: int, eos_token_id: EndTokens, device: Any = "cpu") -> None:
        check_integer("min_length", min_length, 0)
        self.min_length = min_length
        self.eos_token_id = token_tensor(eos_token_id, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return forbid(scores, self.eos_token_id) if input_ids.shape[-1] < self.min_length else scores


class MinNewTokensLengthLogitsProcessor(LogitsProcessor):
    """Forbids end tokens until the answer has `min_new_tokens` tokens.

    Args:
        prompt_length_to_skip: number of tokens of the prompt.
    """

    def __init__(
        self, prompt_length_to_skip: int, min_new_tokens: int, eos_token_id: EndTokens, device: Any = "cpu"
    ) -> None:
        check_integer("prompt_length_to_skip", prompt_length_to_skip, 0)
        check_integer("min_new_tokens", min_new_tokens, 0)
        self.prompt_length_to_skip = prompt_length_to_skip
        self.min_new_tokens = min_new_tokens
        self.eos_token_id = token_tensor(eos_token_id, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        answer = input_ids.shape[-1] - self.prompt_length_to_skip
        return forbid(scores, self.eos_token_id) if answer < self.min_new_tokens else scores


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Allows only `bos_token_id` as the second token of a row, which is the first one after a prompt of one token."""

    def __init__(self, bos_token_id: int) -> None:
        self.bos_token_id = bos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return force(scores, torch.tensor([self.bos_token_id])) if input_ids.shape[-1] == 1 else scores


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Allows only end tokens as the last token, when a row has one token fewer than `max_length`."""

    def __init__(self, max_length: int, eos_token_id: EndTokens, device: Any = "cpu") -> None:
        self.max_length = max_length
        self.eos_token_id = end_tokens(eos_token_id, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return force(scores, self.eos_token_id) if input_ids.shape[-1] == self.max_length - 1 else scores


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Raises the scores of end tokens, exponentially with the length of the answer.

    Args:
        exponential_decay_length_penalty: (start, factor): after `start` tokens of the answer, each further token
            multiplies the effect by `factor`.
        input_ids_seq_length: number of tokens of the prompt.
    """

    def __init__(
        self,
        exponential_decay_length_penalty: tuple[int, float],
        eos_token_id: EndTokens,
        input_ids_seq_length: int,
    ) -> None:
        penalty = exponential_decay_length_penalty
        if not isinstance(penalty, Sequence) or len(penalty) != 2 or not all(isinstance(x, Real) for x in penalty):
            raise RequestError(f"exponential_decay_length_penalty is {show(penalty)}; it must be (start, factor)")
        start, self.regulation_factor = penalty
        self.regulation_start = start + input_ids_seq_length
        self.eos_token_id = end_tokens(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        excess = input_ids.shape[-1] - self.regulation_start
        if excess <= 0:
            return scores
        return raise_scores(scores, self.eos_token_id.to(scores.device), self.regulation_factor**excess - 1)


def raise_scores(scores: Tensor, tokens: Tensor, factor: float) -> Tensor:
    """Adds `factor` times its absolute value to each finite score of `tokens`, (n,)."""
    chosen = scores[:, tokens]
    change = torch.where(chosen.isfinite(), chosen.abs() * factor, 0.0)
    changes = torch.zeros_like(scores)
    changes[:, tokens] = change.to(scores.dtype)
    return scores + changes
