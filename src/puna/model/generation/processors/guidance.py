"""Classifier-free guidance (arXiv:2306.17806): scores move away from those of an empty or negative prompt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.processors.base import LogitsProcessor, number


class ClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Guidance for scores that have two halves: rows with the prompt, then the same rows without it."""

    def __init__(self, guidance_scale: float) -> None:
        number("guidance_scale", guidance_scale, "greater than 1", 1, math.inf, "()")
        self.guidance_scale = guidance_scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the guided scores, (rows, vocabulary), for scores of shape (2 x rows, vocabulary)."""
        if len(scores) != 2 * len(input_ids):
            raise RequestError(
                f"there are {len(scores)} rows of scores for {len(input_ids)} rows of ids; there must be twice as "
                "many: those with the prompt, then those without"
            )
        conditional, unconditional = scores.chunk(2)
        return guide(conditional, unconditional, self.guidance_scale)


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Guidance with a second sequence per row, which the processor continues with the same model.

    Args:
        guidance_scale: greater than 1 moves away from the second prompt, less than 1 towards it.
        model: computes the scores of the second sequences.
        unconditional_ids: (rows, tokens): the second prompts, for example negative ones; one row is used for all. By
            default, the last token of each prompt.
        unconditional_attention_mask: (rows, tokens), 0 for padding.
        use_cache: keep the keys and values of the second sequences.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: Any,
        unconditional_ids: Tensor | None = None,
        unconditional_attention_mask: Tensor | None = None,
        use_cache: bool | None = True,
    ) -> None:
        number("guidance_scale", guidance_scale, "that is finite", -math.inf, math.inf, "()")
        self.guidance_scale = guidance_scale
        self.model = model
        self.unconditional_ids = unconditional_ids
        self.unconditional_attention_mask = unconditional_attention_mask
        self.use_cache = use_cache
        self._cache: Any = None
        self._started = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns guided log-probabilities."""
        scores = scores.log_softmax(dim=-1)
        if self.guidance_scale == 1:
            return scores
        logits = self.get_unconditional_logits(input_ids)[:, -1].to(scores)
        return guide(scores, logits.log_softmax(dim=-1), self.guidance_scale)

    def get_unconditional_logits(self, input_ids: Tensor) -> Tensor:
        """Computes the next step of the second sequences: logits, (rows, tokens, vocabulary)."""
        last = input_ids[:, -1:]
        if not self._started:
            self._started = True
            self.unconditional_ids, self.unconditional_attention_mask = self._second_prompts(input_ids)
            step = self.unconditional_ids
        else:
            assert self.unconditional_ids is not None and self.unconditional_attention_mask is not None
            step = last if self.use_cache else torch.cat((self.unconditional_ids, last), dim=1)
            self.unconditional_ids = step
            mask = self.unconditional_attention_mask
            self.unconditional_attention_mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        out = self.model(
            step,
            attention_mask=self.unconditional_attention_mask,
            use_cache=self.use_cache,
            past_key_values=self._cache,
        )
        self._cache = out.past_key_values if self.use_cache else None
        logits: Tensor = out.logits
        return logits

    def _second_prompts(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ids and mask of the second prompts, with one row for each row of `input_ids`."""
        ids = input_ids[:, -1:] if self.unconditional_ids is None else self.unconditional_ids
        mask = self.unconditional_attention_mask
        mask = torch.ones_like(ids, dtype=torch.long) if mask is None else mask
        rows = len(input_ids)
        if rows % len(ids) or mask.shape != ids.shape:
            raise RequestError(
                f"negative_prompt_ids has the shape {tuple(ids.shape)} and its mask {tuple(mask.shape)}, for {rows} "
                "rows; both need the same shape and one row for each prompt"
            )
        ids, mask = (tensor.to(input_ids.device).repeat_interleave(rows // len(ids), dim=0) for tensor in (ids, mask))
        return ids, mask


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Returns unconditional + scale (conditional - unconditional)."""
    return scale * (conditional - unconditional) + unconditional
