"""The prompt of `generate()`: ids or embeddings, the mask of its padding, and a cache to continue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError
from puna.model.cache import KVCache, LegacyCache
from puna.model.checks import check_embeddings, check_ids


@dataclass(frozen=True)
class Prompt:
    """The prompt, with one row for each text to generate.

    Attributes:
        ids: (rows, tokens), int64; (rows, 0) if only embeddings were given.
        embeds: (rows, tokens, D), which replace the ids in the first forward pass; None without embeddings.
        mask: (rows, cached + tokens), int64; 0 for padding.
        cache: the cache to continue; None without one.
    """

    ids: Tensor
    embeds: Tensor | None
    mask: Tensor
    cache: LegacyCache | None

    def repeat(self, copies: int) -> Prompt:
        """Returns a prompt with `copies` adjacent copies of each row."""
        if copies == 1:
            return self
        rows = torch.arange(len(self.ids), device=self.ids.device).repeat_interleave(copies)
        cache = self.cache
        if cache:
            cache = (cache if isinstance(cache, KVCache) else KVCache(cache)).reorder(rows)
        embeds = None if self.embeds is None else self.embeds[rows]
        return Prompt(self.ids[rows], embeds, self.mask[rows], cache)


def read_prompt(
    settings: GenerationConfig,
    width: int,
    device: torch.device,
    ids: Tensor | None,
    embeds: Tensor | None,
    mask: Tensor | None,
    cache: LegacyCache | None,
) -> Prompt:
    """Returns the prompt of a call, with one row for each prompt.

    Args:
        settings: the token ids bos, eos and pad, and `use_cache`.
        width: the width of the model's embeddings.
        device: where a prompt that consists only of bos is created.
        ids, embeds, mask, cache: the arguments `inputs`, `inputs_embeds`, `attention_mask` and `past_key_values`.

    Raises:
        RequestError: if the arguments contradict each other.
    """
    if ids is not None and embeds is not None:
        raise RequestError("the prompt was given twice, as ids and as inputs_embeds; keep one of them")
    if ids is None and embeds is None:
        if settings.bos_token_id is None:
            raise RequestError("there is neither a prompt nor a bos_token_id to start from; give one of them")
        ids = torch.tensor([[settings.bos_token_id]], device=device)
    if embeds is not None:
        check_embeddings(embeds, width)
        if not settings.use_cache:
            raise RequestError("inputs_embeds with use_cache=False is not supported; set use_cache=True")
        ids, tokens = embeds.new_zeros((embeds.shape[0], 0), dtype=torch.long), embeds.shape[1]
    else:
        assert ids is not None
        check_ids(ids)
        tokens = ids.shape[1]
    if mask is None:
        mask = _infer_mask(settings, ids, tokens)
    _check_mask(mask, ids.shape[0], tokens, cache[0][0].shape[2] if cache else 0)
    return Prompt(ids, embeds, mask.to(ids.device).long(), cache)


def _check_mask(mask: Tensor, rows: int, tokens: int, past: int) -> None:
    """Raises RequestError unless the mask covers the prompt (or cached tokens, too) and no row ends in padding."""
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] not in (tokens, past + tokens):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be 2-D, a row for each of {rows} prompts and a "
            f"column for each of {tokens} tokens" + (f", or also for {past} cached tokens" if past else "")
        )
    if not mask[:, -1].all():
        raise RequestError("in attention_mask, a prompt ends in padding; pad on the left (padding_side='left')")


def _infer_mask(settings: GenerationConfig, ids: Tensor, tokens: int) -> Tensor:
    pad = settings.pad_token_id
    if pad is None or pad in settings.eos_token_ids or not ids.shape[1]:
        return ids.new_ones((ids.shape[0], tokens))
    mask: Tensor = (ids != pad).long()
    return mask
