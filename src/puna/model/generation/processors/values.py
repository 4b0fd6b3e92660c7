"""Processors that change the scores independently of the tokens: invalid values, normalisation, diversity."""

from __future__ import annotations

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.processors.base import LogitsProcessor, LogitsWarper, check_integer


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replaces NaN by 0, and infinity by the largest (or lowest) finite number of the type."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return scores.nan_to_num()


class LogitNormalization(LogitsWarper):
    """Replaces the scores by log-probabilities."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores."""
        return scores.log_softmax(dim=-1)


class HammingDiversityLogitsProcessor(LogitsProcessor):
    """Reduces the scores of tokens that other groups of beams have chosen in the same step (arXiv:1610.02424).

    Args:
        diversity_penalty: the reduction for each beam that has chosen the token.
        num_beams: number of beams per prompt, in all groups.
        num_beam_groups: number of groups.
    """

    def __init__(self, diversity_penalty: float, num_beams: int, num_beam_groups: int) -> None:
        if not isinstance(diversity_penalty, float) or not diversity_penalty > 0:
            raise RequestError(f"diversity_penalty is {diversity_penalty!r}; it must be a float greater than 0")
        check_integer("num_beams", num_beams, 2)
        check_integer("num_beam_groups", num_beam_groups, 2)
        if num_beam_groups > num_beams:
            raise RequestError(f"num_beam_groups is {num_beam_groups}; it must be at most num_beams, {num_beams}")
        self._diversity_penalty = diversity_penalty
        self._num_beams = num_beams
        self._num_sub_beams = num_beams // num_beam_groups

    def __call__(  # type: ignore[override]
        self, input_ids: Tensor, scores: Tensor, current_tokens: Tensor, beam_group_idx: int
    ) -> Tensor:
        """Returns the changed scores.

        Args:
            input_ids: not used.
            scores: (prompts x beams per group, vocabulary), those of one group.
            current_tokens: (prompts x num_beams,): the tokens that the previous groups have chosen in this step.
            beam_group_idx: index of the group.
        """
        first = beam_group_idx * self._num_sub_beams
        if first == 0:
            return scores
        size = min(first + self._num_sub_beams, self._num_beams) - first
        chosen = current_tokens.view(-1, self._num_beams)[:, :first]  # (prompts, beams of previous groups)
        counts = scores.new_zeros((len(chosen), scores.shape[-1]))
        counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=scores.dtype))
        return scores - self._diversity_penalty * counts.repeat_interleave(size, dim=0)
