"""Rows that hold several sequences, as collators without padding build them (trl, `DataCollatorWithFlattening`).

A token attends only to tokens of its own sequence. The sequences are found by positions that restart, as in
transformers, or by the arguments that collators add. Legend: B batch, T tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.checks import check_further, check_mask, check_positions, check_sequences, has_values


def separate_sequences(
    arguments: dict[str, Any],
    x: Tensor,
    past: int,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cached: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mask and the positions of a forward pass, which keep the sequences of a row apart.

    Args:
        arguments: further arguments of forward. `cu_seq_lens_q` and `cu_seq_lens_k`, (sequences + 1,), are the first
            token of each sequence and the end of the last one, counted over all rows; `seq_idx`, (B, T), numbers the
            sequence of each token. `max_length_q` and `max_length_k` have no effect.
        x: (B, T, D), the embedded tokens.
        past: number of cached tokens.
        attention_mask, position_ids: arguments of forward. Without these other arguments, only positions separate
            sequences, and only if there is no mask and no cache.
        cached: whether forward returns a cache.

    Raises:
        ArgumentError: if an argument is unknown.
        RequestError: if the sequences do not match the tokens, or follow cached tokens.
    """
    batch, tokens = x.shape[:2]
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "max_length_q", "max_length_k")
    first, other, numbers = [arguments.pop(name, None) for name in names][:3]
    check_further(arguments, past, tokens)
    starts = other if first is None else first
    if starts is None and numbers is None:
        if position_ids is None or attention_mask is not None or past or cached:
            return attention_mask, position_ids
        check_positions(position_ids, batch, tokens)
        positions = position_ids.to(x.device).long().view(-1, tokens)
        numbers = (positions.diff(dim=1, prepend=positions[:, :1] - 1) != 1).cumsum(1)  # (B or 1, T)
    else:
        check_sequences(starts, other, numbers, batch, tokens)
        if past or (attention_mask is not None and attention_mask.dim() == 4):
            raise RequestError(
                f"{'cu_seq_lens_q' if numbers is None else 'seq_idx'} separates the sequences of a row, which needs "
                "calls without past_key_values and without an attention_mask of four dimensions; omit these"
            )
        if numbers is None:
            every = torch.arange(batch * tokens, device=x.device)
            numbers = torch.searchsorted(starts.to(x.device).long(), every, right=True).view(batch, tokens)
    numbers = numbers.to(x.device)
    if has_values(numbers) and (numbers == numbers[:, :1]).all():
        return attention_mask, position_ids
    if position_ids is None:
        position_ids = _positions(numbers)
    allowed = (numbers[:, None, :, None] == numbers[:, None, None, :]).tril()  # (B or 1, 1, T, T)
    if attention_mask is not None:
        check_mask(attention_mask, batch, tokens, tokens)
        allowed = allowed & attention_mask.to(x.device).bool()[:, None, None]
    return allowed, position_ids


def _positions(numbers: Tensor) -> Tensor:
    """Returns the position of each token in its sequence, (B, T), from the number of the sequence of each token."""
    index = torch.arange(numbers.shape[1], device=numbers.device).expand_as(numbers)
    restarts = numbers.diff(dim=1, prepend=numbers[:, :1]) != 0
    return index - (index * restarts).cummax(dim=1).values
