"""The prompt of `generate()`: ids or embeddings, the mask of its padding, and a cache to continue."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.checks import check_embeddings, check_ids, check_layers, check_positions, check_tensor


@dataclass(frozen=True)
class PromptArguments:
    """The arguments of a call that make up its prompt; see `generate`."""

    ids: Tensor | None = None
    embeds: Tensor | None = None
    mask: Tensor | None = None
    cache: LegacyCache | None = None
    positions: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    notices: dict[str, Any] = field(default_factory=dict)
    """The model's `warnings_issued`: notices that are given once for a model, by key."""


@dataclass(frozen=True)
class Prompt:
    """The prompt, with one row for each text to generate.

    Attributes:
        ids: (rows, tokens), int64; (rows, 0) if only embeddings were given.
        embeds: (rows, tokens, D), which replace the ids in the first forward pass; None without embeddings.
        mask: (rows, cached + tokens), int64; 0 for padding.
        cache: the cache to continue; None without one.
        positions: (rows, cached + tokens), the positions of the tokens; None for those that follow from the mask.
        extra: further arguments of each forward pass, of a subclass of the model that accepts them.
    """

    ids: Tensor
    embeds: Tensor | None
    mask: Tensor
    cache: LegacyCache | None
    positions: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def first_group(self, beams: int, groups: int) -> Prompt:
        """Returns the rows of the first group of beams of each prompt. Each prompt has `beams` rows."""
        if groups == 1:
            return self
        rows = torch.arange(len(self.ids), device=self.ids.device)
        rows = rows[rows % beams < beams // groups]
        return Prompt(self.ids[rows], None, self.mask[rows], None)

    def repeat(self, copies: int) -> Prompt:
        """Returns a prompt with `copies` adjacent copies of each row."""
        if copies == 1:
            return self
        rows = torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(copies)
        cache = KVCache.of(self.cache).reorder(rows) if self.cache else self.cache
        embeds = None if self.embeds is None else self.embeds[rows]
        positions = None if self.positions is None else self.positions[rows]
        return Prompt(self.ids[rows], embeds, self.mask[rows], cache, positions, self.extra)


def read_prompt(settings: GenerationConfig, width: int, device: torch.device, arguments: PromptArguments) -> Prompt:
    """Returns the prompt of a call, with one row for each prompt, on the device of the model.

    Args:
        settings: the token ids bos, eos and pad.
        width: the width of the model's embeddings.
        device: the device of the model.
        arguments: the prompt as the caller passed it.

    Raises:
        RequestError: if the arguments contradict each other.
    """
    ids, embeds, cache = arguments.ids, arguments.embeds, arguments.cache
    if cache is not None:
        check_layers(cache)
    if embeds is not None:
        check_embeddings(embeds, width)
        if ids is None:
            ids = embeds.new_zeros((embeds.shape[0], 0), dtype=torch.long)
    elif ids is None:
        if settings.bos_token_id is None:
            raise RequestError("there is neither a prompt nor a bos_token_id to start from; give one of them")
        if arguments.mask is not None:
            check_tensor("attention_mask", arguments.mask)
        rows = 1 if arguments.mask is None else len(arguments.mask)
        ids = torch.full((rows, 1), settings.bos_token_id)
    if embeds is None:
        check_ids(ids)
    elif ids.shape[0] != embeds.shape[0]:
        raise RequestError(f"the prompt has {len(ids)} rows of ids and {len(embeds)} of inputs_embeds")
    tokens = ids.shape[1] if embeds is None else embeds.shape[1]
    mask = _infer_mask(settings, ids, tokens, arguments.notices) if arguments.mask is None else arguments.mask
    _check_mask(mask, ids.shape[0], tokens, cache[0][0].shape[2] if cache else 0)
    _warn_about_right_padding(settings, ids, arguments.mask)
    if settings.pad_token_id is None and settings.eos_token_ids:
        logging.getLogger(__name__).warning(
            "pad_token_id is not set; rows that have ended are filled with the eos token, %d", settings.eos_token_ids[0]
        )
    positions = arguments.positions
    if positions is not None:
        check_positions(positions, ids.shape[0], mask.shape[1])
        positions = positions.to(device).long().expand(mask.shape)
    embeds = None if embeds is None else embeds.to(device)
    return Prompt(ids.to(device).long(), embeds, mask.to(device).long(), cache, positions, arguments.extra)


def _check_mask(mask: Tensor, rows: int, tokens: int, past: int) -> None:
    """Raises RequestError unless the mask covers the prompt, with or without the cached tokens."""
    check_tensor("attention_mask", mask)
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] not in (tokens, past + tokens):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be 2-D, a row for each of {rows} prompts and a "
            f"column for each of {tokens} tokens" + (f", or also for {past} cached tokens" if past else "")
        )
    if mask.shape[1] <= past:
        raise RequestError(
            f"the prompt has {mask.shape[1]} tokens and {past} are cached; at least one must not be cached"
        )


def _infer_mask(settings: GenerationConfig, ids: Tensor, tokens: int, notices: dict[str, Any]) -> Tensor:
    """Returns a mask for a prompt that has none: pad tokens are padding, unless the pad token also ends texts."""
    pad, ends = settings.pad_token_id, settings.eos_token_ids
    if pad is not None and pad not in ends and ids.shape[1] == tokens:
        mask: Tensor = (ids != pad).long()
        return mask
    if len(ids) > 1 and ends and ids.shape[1] and not notices.get("attention_mask"):
        notices["attention_mask"] = True
        logging.getLogger(__name__).warning(
            "generate() was called with several prompts and without attention_mask, and padding cannot be detected, "
            "because the pad token is not set or also ends texts; pass the attention_mask"
        )
    return ids.new_ones((ids.shape[0], tokens))


def _warn_about_right_padding(settings: GenerationConfig, ids: Tensor, mask: Tensor | None) -> None:
    if mask is not None:
        padded = not bool(mask[:, -1].all())
    else:
        pad, ends = settings.pad_token_id, settings.eos_token_ids
        padded = pad is not None and pad not in ends and ids.shape[1] > 0 and bool((ids[:, -1] == pad).any())
    if padded:
        warnings.warn(
            "a prompt ends in padding (right padding); the answer would continue the padding and be wrong. Pad on the "
            "left: tokenizer.padding_side = 'left'",
            stacklevel=4,
        )
