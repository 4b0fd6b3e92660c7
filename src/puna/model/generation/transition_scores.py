"""`compute_transition_scores`: the score of each generated token, from the scores that `generate()` returned.

Legend: R returned rows, S scored rows (prompts x beams), N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.errors import RequestError, show
from puna.model.checks import check_tensor


def compute_transition_scores(
    self: object,
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """Returns the score of each new token of each sequence, (R, N); 0 after the end of a beam.

    Args:
        sequences: (R, prompt + N), as `generate()` returned them.
        scores: per new token (S, V), from `output_scores=True`.
        beam_indices: (R, N), the row of `scores` that each token was chosen from, -1 after the end; from a beam search.
            Without it, row i of `sequences` was always chosen from row i.
        normalize_logits: whether to return log-probabilities: log-softmax is applied to each row of `scores`.
    """
    check_tensor("sequences", sequences)
    if (
        not isinstance(scores, Sequence)
        or not scores
        or not all(isinstance(step, Tensor) and step.dim() == 2 for step in scores)
    ):
        raise RequestError(
            f"scores is {show(scores)}; pass the scores of generate(output_scores=True, return_dict_in_generate=True), "
            "a tensor (rows, vocabulary) for each new token"
        )
    if beam_indices is not None:
        check_tensor("beam_indices", beam_indices)
    expected = (len(sequences), len(scores)) if beam_indices is None else tuple(beam_indices.shape)
    if sequences.dim() != 2 or len(expected) != 2 or expected[0] != len(sequences) or expected[1] > sequences.shape[1]:
        raise RequestError(
            f"sequences has the shape {tuple(sequences.shape)} and beam_indices {expected}; both need a row for each "
            "sequence, and a column for each new token"
        )
    stacked = torch.stack(tuple(scores), dim=1)  # (S, N, V)
    if normalize_logits:
        stacked = stacked.log_softmax(dim=-1)
    if beam_indices is None:
        beam_indices = torch.arange(len(stacked), device=sequences.device)[:, None].expand(-1, len(scores))
    ended = beam_indices < 0
    longest = int((~ended).sum(dim=1).max())
    beam_indices, ended = beam_indices[:, :longest].clamp(min=0), ended[:, :longest]
    tokens = sequences[:, sequences.shape[1] - longest :]  # (R, N)
    steps = torch.arange(longest, device=sequences.device).expand_as(tokens)
    return stacked[beam_indices, steps, tokens].masked_fill(ended, 0)
