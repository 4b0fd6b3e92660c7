"""Beam searches driven by a `BeamScorer`: diverse and constrained beam search, and the methods of transformers 4.34.

Legend: B prompts, G groups per prompt, N beams per group, V vocabulary. The rows of a prompt are adjacent, and so are
those of its groups. A text's score is divided by its complete length, prompt included, as in transformers 4.34.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.loop import Decoding, check_scores, step
from puna.model.generation.outputs import GenerateBeamDecoderOnlyOutput
from puna.model.generation.strategies.constrained_scorer import ConstrainedBeamSearchScorer
from puna.model.generation.strategies.constraints import forced_words
from puna.model.generation.strategies.scorers import BeamSearchScorer

Warp = Callable[[Tensor, Tensor], Tensor]
"""(ids (rows, tokens), scores (rows, V)) -> scores, for beam sampling."""


@dataclass
class ScoredSearch:
    """The variant of the search.

    Attributes:
        scorer: chooses the beams; any object with the methods of `BeamScorer`.
        constrained: whether the scorer also receives the scores of all continuations. They are then the `scores` of the
            output, as in transformers.
        warp: changes the summed scores before continuations are drawn from them; None chooses the best ones.
        max_length: maximum number of tokens of prompt and answer, with the end token; None: no maximum.
    """

    scorer: Any
    constrained: bool = False
    warp: Warp | None = None
    max_length: int | None = None


@dataclass
class _Beams:
    """The running beams. `parents` is None if it is not requested: per row, the rows its new tokens came from."""

    ids: Tensor  # (B*G*N, tokens)
    scores: Tensor  # (B*G*N,)
    parents: list[tuple[int, ...]] | None


def diverse_beam_search(decoding: Decoding) -> GenerateBeamDecoderOnlyOutput:
    """Beam search in groups; tokens that earlier groups chose in the same step get `diversity_penalty`."""
    settings, prompt = decoding.settings, decoding.prompt
    max_length = (prompt.ids.shape[1] or 1) + decoding.limit  # `_counted` adds the 1
    scorer = BeamSearchScorer(
        len(prompt.ids) // settings.num_beams,
        settings.num_beams,
        prompt.ids.device,
        settings.length_penalty,
        settings.early_stopping,
        settings.num_return_sequences,
        settings.num_beam_groups,
        max_length,
    )
    return scored_search(decoding, ScoredSearch(scorer, max_length=max_length))


def constrained_beam_search(decoding: Decoding) -> GenerateBeamDecoderOnlyOutput:
    """Beam search for texts that satisfy `constraints` and contain `force_words_ids`."""
    settings, prompt = decoding.settings, decoding.prompt
    if settings.num_beams < 2:
        raise RequestError(f"num_beams is {settings.num_beams}; constraints need at least 2 beams")
    constraints = list(settings.constraints or ())
    if settings.force_words_ids is not None:
        constraints += forced_words(settings.force_words_ids)
    max_length = (prompt.ids.shape[1] or 1) + decoding.limit  # `_counted` adds the 1
    scorer = ConstrainedBeamSearchScorer(
        len(prompt.ids) // settings.num_beams,
        settings.num_beams,
        constraints,
        prompt.ids.device,
        settings.length_penalty,
        settings.early_stopping,
        settings.num_return_sequences,
        max_length=max_length,
    )
    return scored_search(decoding, ScoredSearch(scorer, constrained=True, max_length=max_length))


def scored_search(decoding: Decoding, search: ScoredSearch) -> GenerateBeamDecoderOnlyOutput:
    """Continues the prompts, which have a row for each beam, until the scorer or a criterion ends the search."""
    scorer, mask, cache = search.scorer, decoding.prompt.mask, decoding.prompt.cache
    beams = _start(decoding, search)
    chosen: tuple[Tensor, Tensor] | None = None
    for length in range(1, decoding.limit + 1):
        decoding.all_finished(False)
        logits, cache, out = step(decoding, beams.ids, mask, cache)
        check_scores(logits, logits, torch.ones_like(mask[:, 0]).bool(), random=False)
        beams, rows, scores, chosen = _advance(decoding, search, beams, logits)
        decoding.record(scores, logits, out)
        cache = decoding.runner.reorder(cache, rows)
        mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        if scorer.is_done or length == decoding.limit or bool(decoding.ended(beams.ids, scores).all()):
            break
    decoding.wait_for_others(beams.ids, mask, cache)
    assert chosen is not None
    result = scorer.finalize(
        _counted(beams.ids, decoding), beams.scores, *chosen, pad_token_id=decoding.pad, eos_token_id=_ends(decoding),
        max_length=search.max_length, beam_indices=None if beams.parents is None else tuple(beams.parents),
    )  # fmt: skip
    return GenerateBeamDecoderOnlyOutput(
        result["sequences"] if decoding.prompt.ids.shape[1] else result["sequences"][:, 1:],
        sequences_scores=result["sequence_scores"] if decoding.requests("scores") else None,
        beam_indices=result["beam_indices"],
        **decoding.optional_outputs(cache),
    )


def _start(decoding: Decoding, search: ScoredSearch) -> _Beams:
    ids, scorer = decoding.prompt.ids, search.scorer
    if len(ids) % scorer.num_beams:
        raise RequestError(f"input_ids has {len(ids)} rows; it must have {scorer.num_beams} (num_beams) per prompt")
    scores = torch.zeros(len(ids), device=ids.device)
    if search.warp is None:
        # The beams of a group are equal at first; only one of them may continue. Drawn continuations differ anyway.
        size = scorer.num_beams // getattr(scorer, "num_beam_groups", 1)
        scores[torch.arange(len(ids), device=ids.device) % size > 0] = -1e9
    return _Beams(ids, scores, [()] * len(ids) if decoding.requests("scores") else None)


def _advance(
    decoding: Decoding, search: ScoredSearch, beams: _Beams, logits: Tensor
) -> tuple[_Beams, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Continues all beams by one token, one group after the other.

    Returns:
        The beams; the row that each of them continues; the scores to record, (rows, V); tokens and beams of the
        continuations that the scorer received last.
    """
    groups = getattr(search.scorer, "num_beam_groups", 1)
    current = beams.ids.new_zeros(len(logits))  # (B*G*N,), the tokens of this step
    origins, recorded, totals = torch.empty_like(current), torch.empty_like(logits), torch.empty_like(beams.scores)
    chosen: tuple[Tensor, Tensor] = (current, current)
    for group in range(groups):
        rows = torch.arange(len(logits), device=current.device).view(-1, groups, search.scorer.num_beams // groups)
        rows = rows[:, group].flatten()  # (B*N,), the rows of the group
        context = {"current_tokens": current, "beam_group_idx": group} if groups > 1 else {}
        processed = decoding.process(beams.ids[rows], logits[rows].log_softmax(dim=-1), **context)
        total = processed + beams.scores[rows, None]
        recorded[rows] = total if search.constrained else processed
        if search.warp is not None:
            total, recorded[rows] = search.warp(beams.ids[rows], total), search.warp(beams.ids[rows], processed)
        candidates = _candidates(decoding, total, search)
        chosen = candidates[1:]
        history = None if beams.parents is None else tuple(beams.parents[row] for row in rows.tolist())
        extra: dict[str, Any] = {"group_index": group} if groups > 1 else {}
        if search.constrained:
            extra["scores_for_all_vocab"] = total
        result = search.scorer.process(
            _counted(beams.ids[rows], decoding), *candidates, pad_token_id=decoding.pad, eos_token_id=_ends(decoding),
            beam_indices=history, **extra,
        )  # fmt: skip
        origins[rows] = rows[result["next_beam_indices"]]
        current[rows], totals[rows] = result["next_beam_tokens"], result["next_beam_scores"]
    parents = None
    if beams.parents is not None:
        parents = [(*beams.parents[origin], origin) for origin in origins.tolist()]
    ids = torch.cat((beams.ids[origins], current[:, None]), dim=1)
    return _Beams(ids, totals, parents), origins, recorded, chosen


def _counted(ids: Tensor, decoding: Decoding) -> Tensor:
    """Returns the ids whose number divides the scores. Embeddings without ids count as one token, as in 4.34."""
    if decoding.prompt.ids.shape[1]:
        return ids
    return torch.cat((ids.new_full((len(ids), 1), -1), ids), dim=1)  # no constraint has the token -1


def _candidates(decoding: Decoding, total: Tensor, search: ScoredSearch) -> tuple[Tensor, Tensor, Tensor]:
    """Returns scores, tokens and beams of the best, or drawn, continuations of a group, each (B, candidates).

    There are enough of them for all beams to continue if every end token is among the best tokens of each beam.
    """
    vocabulary = total.shape[-1]
    size = search.scorer.num_beams // getattr(search.scorer, "num_beam_groups", 1)
    total = total.view(-1, size * vocabulary)  # (B, N*V)
    if search.warp is None:
        scores, index = total.topk(max(2, 1 + len(decoding.settings.eos_token_ids)) * size, dim=1)
    else:
        index = torch.multinomial(total.softmax(dim=-1), 2 * size, generator=decoding.generator)
        scores, order = total.gather(1, index).sort(descending=True, dim=1)
        index = index.gather(1, order)
    return scores, index % vocabulary, index // vocabulary


def _ends(decoding: Decoding) -> list[int] | None:
    return list(decoding.settings.eos_token_ids) or None
