"""Processors that suppress or force tokens, or allow those that a function returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError, show
from puna.model.generation.processors.base import LogitsProcessor, forbid, force, token_tensor

AllowedTokens = Callable[[int, Tensor], Sequence[int]]
"""(index of the prompt, ids of one row, (tokens,)) -> the ids that may follow."""


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Forbids the given tokens."""

    def __init__(self, suppress_tokens: Iterable[int], device: Any = "cpu") -> None:
        self.suppress_tokens = token_tensor(suppress_tokens, device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return forbid(scores, self.suppress_tokens)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Forbids the given tokens where a row has exactly `begin_index` tokens: at the start of the answer."""

    def __init__(self, begin_suppress_tokens: Iterable[int], begin_index: int, device: Any = "cpu") -> None:
        self.begin_suppress_tokens = token_tensor(begin_suppress_tokens, device)
        self.begin_index = begin_index

    def set_begin_index(self, begin_index: int) -> None:
        """Sets the length of a row at which the tokens are forbidden."""
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return forbid(scores, self.begin_suppress_tokens) if input_ids.shape[-1] == self.begin_index else scores


class ForceTokensLogitsProcessor(LogitsProcessor):
    """Allows only one token at given positions. transformers 4 has this class, and 5 does not.

    Args:
        force_token_map: pairs (position, token), or a dictionary; the first token of a row has position 0.
    """

    def __init__(self, force_token_map: Any) -> None:
        try:
            self.force_token_map: dict[int, int | None] = dict(force_token_map)
        except (TypeError, ValueError) as exc:
            raise RequestError(f"force_token_map is {show(force_token_map)}; it must be pairs (position, id)") from exc

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        token = self.force_token_map.get(input_ids.shape[-1])
        return scores if token is None else force(scores, torch.tensor([token]))


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Allows only the tokens that a function of the row's tokens returns.

    If all allowed tokens of all beams of a prompt are forbidden by other processors, their scores become 0.

    Args:
        prefix_allowed_tokens_fn: (index of the prompt, ids of one row) -> allowed ids.
        num_beams: number of adjacent rows with the same prompt.
    """

    def __init__(self, prefix_allowed_tokens_fn: AllowedTokens, num_beams: int) -> None:
        self._prefix_allowed_tokens_fn = prefix_allowed_tokens_fn
        self._num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores.

        Raises:
            RequestError: the function allows no token.
        """
        mask = torch.full_like(scores, float("-inf"))
        for row, ids in enumerate(input_ids):
            allowed = self._prefix_allowed_tokens_fn(row // self._num_beams, ids)
            if not isinstance(allowed, Sequence | Tensor):
                raise RequestError(
                    f"prefix_allowed_tokens_fn returned {show(allowed)}; it must return a list of token ids"
                )
            if len(allowed) == 0:
                raise RequestError(
                    f"prefix_allowed_tokens_fn returned no token for the prompt {row // self._num_beams} after "
                    f"{len(ids)} tokens; return at least one id, such as eos_token_id"
                )
            mask[row, allowed] = 0
        result = scores + mask
        impossible = result.amax(dim=-1).isneginf().view(-1, self._num_beams).all(dim=-1)  # (prompts,)
        return torch.where(impossible.repeat_interleave(self._num_beams)[:, None], mask, result)
