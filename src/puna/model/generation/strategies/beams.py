"""Beam search and beam sampling: the most likely texts, found by continuing several texts (beams) per prompt.

Legend: B prompts, N beams per prompt, C candidates per prompt, T tokens so far, S new tokens so far, V vocabulary.

A text's score is its summed log-probability, divided by the number of its new tokens to the power of `length_penalty`.
At each step, the best candidates (continuations of a beam by one token) that end become finished texts, of which the N
best are kept; the N best of the others are the beams of the next step. This is the algorithm of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from puna.model.generation.loop import Decoding, check_scores, step
from puna.model.generation.outputs import GenerateBeamDecoderOnlyOutput
from puna.model.generation.settings import is_random

IMPOSSIBLE = -1.0e9
"""The score of texts that must not be chosen. Finite, so that they still have an order; as in transformers."""


@dataclass
class Texts:
    """Texts of each prompt, (B, n, ...).

    Attributes:
        ids: (B, n, T), int64.
        scores: (B, n), float32.
        parents: (B, n, S), the row of the batch that each new token was computed from; -1 after the end.
        ended: (B, n), bool.
    """

    ids: Tensor
    scores: Tensor
    parents: Tensor
    ended: Tensor

    def select(self, index: Tensor) -> Texts:
        """Returns the texts `index`, (B, m), of each prompt."""
        return Texts(*(_gather(part, index) for part in (self.ids, self.scores, self.parents, self.ended)))

    def join(self, other: Texts) -> Texts:
        """Returns the texts of both."""
        return Texts(
            torch.cat((self.ids, other.ids), dim=1),
            torch.cat((self.scores, other.scores), dim=1),
            torch.cat((self.parents, other.parents), dim=1),
            torch.cat((self.ended, other.ended), dim=1),
        )

    def append(self, tokens: Tensor | int, rows: Tensor | int) -> Texts:
        """Returns the texts with one more token, (B, n), that was computed from row `rows` of the batch, (B, n)."""
        column = self.ids.new_empty((*self.scores.shape, 1))  # (B, n, 1)
        ids = torch.cat((self.ids, _fill(column, tokens)), dim=-1)
        return Texts(ids, self.scores, torch.cat((self.parents, _fill(column, rows)), dim=-1), self.ended)


def beam_search(decoding: Decoding) -> GenerateBeamDecoderOnlyOutput:
    """Continues each prompt by beam search or, if the settings request sampling, by beam sampling.

    `decoding.prompt` has `num_beams` adjacent rows for each prompt.
    """
    prompt, beams = decoding.prompt, decoding.settings.num_beams
    running, finished = _start(prompt.ids, beams)
    improvable = torch.ones(len(running.ids), dtype=torch.bool, device=prompt.ids.device)  # (B,)
    mask, cache = prompt.mask, prompt.cache
    for length in range(1, decoding.limit + 1):
        decoding.all_finished(False)
        ids = running.ids.flatten(0, 1)  # (B*N, T)
        logits, cache, out = step(decoding, ids, mask, cache)
        check_scores(logits, logits, torch.ones_like(mask[:, 0]).bool(), random=False)
        scores = decoding.process(ids, logits.log_softmax(dim=-1))  # (B*N, V)
        decoding.record(scores, logits, out)
        candidates = _candidates(decoding, running, scores)
        ended = decoding.ended(candidates.ids.flatten(0, 1), scores).view(candidates.ended.shape)
        candidates.ended = ended | (length == decoding.limit)
        running = _best_running(candidates, beams)
        finished = _best_finished(decoding, finished, candidates, improvable, length)
        cache = decoding.runner.reorder(cache, running.parents[:, :, -1].flatten())
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        improvable = improvable & _can_improve(decoding, running, finished, length)
        if not improvable.any() or bool(candidates.ended.all()):
            break
        if decoding.settings.early_stopping is True and bool(finished.ended.all()):
            break
    decoding.wait_for_others(running.ids.flatten(0, 1), mask, cache)
    return _output(decoding, finished, cache)


def _start(ids: Tensor, beams: int) -> tuple[Texts, Texts]:
    """Returns the running texts, which are equal for each prompt, and the finished texts, of which there are none."""
    prompts = len(ids) // beams
    ids = ids.view(prompts, beams, -1)
    scores = torch.zeros((prompts, beams), device=ids.device)
    ended = torch.zeros_like(scores, dtype=torch.bool)
    parents = ids.new_empty((prompts, beams, 0))
    only_first = scores.clone()
    only_first[:, 1:] = IMPOSSIBLE  # the beams are equal: without this, all would continue in the same way
    return Texts(ids, only_first, parents, ended), Texts(ids, scores + IMPOSSIBLE, parents, ended)


def _candidates(decoding: Decoding, running: Texts, scores: Tensor) -> Texts:
    """Returns the best continuations, or drawn ones, given the scores of the next token, (B*N, V).

    There are enough of them for N to remain if all end tokens are among the best tokens of each beam.
    """
    prompts, beams = running.scores.shape
    vocabulary = scores.shape[-1]
    total = (scores.view(prompts, beams, -1) + running.scores[:, :, None]).flatten(1)  # (B, N*V)
    count = max(2, 1 + len(decoding.settings.eos_token_ids)) * beams
    if is_random(decoding.settings):
        index = torch.multinomial(total.softmax(dim=-1), count, generator=decoding.generator)  # (B, C)
    else:
        index = total.topk(count, dim=-1).indices
    beam = index // vocabulary
    rows = beam + torch.arange(prompts, device=beam.device)[:, None] * beams
    candidates = running.select(beam).append(index % vocabulary, rows)
    candidates.scores = total.gather(1, index)
    return candidates


def _best_running(candidates: Texts, beams: int) -> Texts:
    """Returns the best candidates that have not ended."""
    scores = candidates.scores + candidates.ended * IMPOSSIBLE
    best = scores.topk(beams, dim=1).indices
    running = candidates.select(best)
    running.scores = scores.gather(1, best)
    return running


def _best_finished(decoding: Decoding, finished: Texts, candidates: Texts, improvable: Tensor, length: int) -> Texts:
    """Returns the best of the finished texts and the candidates that ended.

    Args:
        decoding: the call.
        finished: the finished texts so far.
        candidates: the continuations of this step.
        improvable: (B,), whether the finished texts of a prompt can still be improved.
        length: number of new tokens of the candidates.
    """
    beams = finished.scores.shape[1]
    # A candidate that ended counts only if it is one of the N best; the others are there to keep N beams running.
    ended = candidates.ended & (torch.arange(candidates.ended.shape[1], device=improvable.device) < beams)
    closed = ~improvable[:, None]
    if decoding.settings.early_stopping is True:
        closed = closed | finished.ended.all(dim=1, keepdim=True)
    scores = candidates.scores / length**decoding.settings.length_penalty
    scores = scores + closed * IMPOSSIBLE + ~ended * IMPOSSIBLE
    texts = finished.append(_fill_token(decoding), -1).join(Texts(candidates.ids, scores, candidates.parents, ended))
    return texts.select(texts.scores.topk(beams, dim=1).indices)


def _can_improve(decoding: Decoding, running: Texts, finished: Texts, length: int) -> Tensor:
    """Returns for each prompt, (B,), whether its best beam could still become one of its finished texts.

    The score that the beam would have is computed from its present length or, with `early_stopping` "never", from the
    length that makes it largest.
    """
    settings = decoding.settings
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        length = decoding.limit
    attainable = running.scores[:, :1] / length**settings.length_penalty
    worst = torch.where(finished.ended, finished.scores.amin(dim=1, keepdim=True), IMPOSSIBLE)
    improvable: Tensor = (attainable > worst).any(dim=1)
    return improvable


def _output(decoding: Decoding, finished: Texts, cache: object) -> GenerateBeamDecoderOnlyOutput:
    texts = decoding.settings.num_return_sequences
    ids, parents = finished.ids[:, :texts].flatten(0, 1), finished.parents[:, :texts].flatten(0, 1)
    longest = int((parents >= 0).sum(dim=1).max())
    unused = parents.shape[1] - longest
    scores = finished.scores[:, :texts].flatten() if decoding.requests("scores") else None
    return GenerateBeamDecoderOnlyOutput(
        ids[:, : ids.shape[1] - unused],
        sequences_scores=scores,
        beam_indices=parents[:, :longest],
        **decoding.optional_outputs(cache),
    )


def _fill_token(decoding: Decoding) -> int:
    """Returns the token after the end of a text. As in transformers 5, a padding token of 0 counts as absent here."""
    eos = decoding.settings.eos_token_ids
    return decoding.settings.pad_token_id or (eos[0] if eos else decoding.pad)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Returns `values[b, index[b]]` for each prompt b."""
    return values.take_along_dim(index.view(*index.shape, *[1] * (values.dim() - 2)), dim=1)


def _fill(column: Tensor, values: Tensor | int) -> Tensor:
    """Returns the column, (B, n, 1), filled with one value or with values (B, n)."""
    return torch.full_like(column, values) if isinstance(values, int) else values.unsqueeze(-1)
