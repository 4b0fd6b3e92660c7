"""`ConstrainedBeamSearchScorer`: prefers beams that have made progress through constraints; a class of transformers.

After each step, the beams are grouped into banks by their progress. The beams of the next step are the best beam of
each bank, most progress first, then the second best of each bank, and so on (arXiv:1804.06609).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from puna.errors import RequestError
from puna.model.generation.strategies.constraints import Constraint, ConstraintListState, check_constraints
from puna.model.generation.strategies.scorers import Candidates, Ends, HypothesisScorer, Parents, Step, end_ids

BANK_WEIGHT = 100
"""Weight of a unit of progress against a log-probability when continuations are sorted, as in transformers."""


@dataclass
class _Continuations:
    """Continuations of the beams of one prompt, and the progress of each."""

    texts: list[list[int]]
    states: list[ConstraintListState]
    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)

    def add(self, text: list[int], state: ConstraintListState, row: int, score: Tensor) -> None:
        """Adds a continuation unless there is one with the same text."""
        if text not in self.texts:
            self.texts.append(text)
            self.states.append(state)
            self.rows.append(row)
            self.tokens.append(text[-1])
            self.scores.append(score)


class ConstrainedBeamSearchScorer(HypothesisScorer):
    """The scorer of constrained beam search. A text may only end when it satisfies all constraints.

    Args:
        batch_size, num_beams, device, length_penalty, do_early_stopping, num_beam_hyps_to_keep, max_length: as in
            `BeamSearchScorer`.
        constraints: every text must satisfy all of them.
        num_beam_groups: must be 1.

    Raises:
        RequestError: if `num_beams` is below 2 or `num_beam_groups` is not 1.
    """

    def __init__(
        self,
        batch_size: int,
        num_beams: int,
        constraints: list[Constraint],
        device: torch.device | str,
        length_penalty: float = 1.0,
        do_early_stopping: bool | str = False,
        num_beam_hyps_to_keep: int = 1,
        num_beam_groups: int = 1,
        max_length: int | None = None,
    ) -> None:
        if num_beam_groups != 1:
            raise RequestError(f"num_beam_groups is {num_beam_groups}; with constraints it must be 1")
        super().__init__(
            batch_size, num_beams, device, length_penalty, do_early_stopping, num_beam_hyps_to_keep, 1, max_length
        )
        check_constraints(constraints)
        self.constraints = constraints

    def make_constraint_states(self, n: int) -> list[ConstraintListState]:
        """Returns `n` states without progress."""
        return [ConstraintListState([constraint.copy() for constraint in self.constraints]) for _ in range(n)]

    def check_completes_constraints(self, sequence: list[int]) -> bool:
        """Returns whether a text satisfies all constraints."""
        state = self.make_constraint_states(1)[0]
        state.reset(sequence)
        return state.completed

    def process(
        self,
        input_ids: Tensor,
        next_scores: Tensor,
        next_tokens: Tensor,
        next_indices: Tensor,
        scores_for_all_vocab: Tensor | None = None,
        pad_token_id: int | Tensor | None = None,
        eos_token_id: Ends = None,
        beam_indices: Parents | None = None,
        decoder_prompt_len: int | None = None,
    ) -> dict[str, Tensor]:
        """Chooses the beams of the next step, and keeps the texts that end in it.

        Args:
            scores_for_all_vocab: (batch x beams, vocab), the summed log-probability of every continuation.
            input_ids, next_scores, next_tokens, next_indices, pad_token_id, eos_token_id, beam_indices,
                decoder_prompt_len: as in `BeamSearchScorer.process`.

        Raises:
            RequestError: as in `BeamSearchScorer.process`, or if `scores_for_all_vocab` is missing.
        """
        if scores_for_all_vocab is None:
            raise RequestError("scores_for_all_vocab is missing; give the scores of all continuations, (beams, vocab)")
        step = Step(input_ids, end_ids(eos_token_id), pad_token_id, beam_indices, 0, decoder_prompt_len)
        return self._next_beams(step, next_scores, next_tokens, next_indices, scores_for_all_vocab)

    def _may_end(self, ids: Tensor) -> bool:
        return self.check_completes_constraints(ids.tolist())

    def _rearrange(self, step: Step, prompt: int, beams: Candidates, vocab_scores: Tensor | None) -> Candidates:
        assert vocab_scores is not None
        rows, tokens = step.ids.new_tensor(beams.beams), step.ids.new_tensor(beams.tokens)
        scores = vocab_scores.new_tensor(beams.scores)
        scores, tokens, rows = self.step_sentence_constraint(prompt, step.ids, vocab_scores, scores, tokens, rows)
        return Candidates(scores.tolist(), tokens.tolist(), rows.tolist())

    def step_sentence_constraint(
        self,
        batch_idx: int,
        input_ids: Tensor,
        vocab_scores: Tensor,
        sent_beam_scores: Tensor,
        sent_beam_tokens: Tensor,
        sent_beam_indices: Tensor,
        push_progress: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chooses the beams of one prompt among its best continuations and those that advance the constraints.

        Args:
            batch_idx: the prompt.
            input_ids: (batch x beams, tokens), the running beams.
            vocab_scores: (batch x beams, vocab), the summed log-probability of every continuation.
            sent_beam_scores, sent_beam_tokens, sent_beam_indices: (beams,), scores, tokens and rows of the best
                continuations.
            push_progress: also continue each beam that satisfies all constraints with its most likely token.

        Returns:
            Scores, tokens and rows of the beams of the next step, each (beams,).
        """
        texts = torch.cat((input_ids[sent_beam_indices], sent_beam_tokens[:, None]), dim=1).tolist()
        states = self.make_constraint_states(len(texts))
        for text, state in zip(texts, states, strict=True):
            state.reset(text)
        additions = _Continuations(texts, states)
        for row in range(batch_idx * len(sent_beam_indices), (batch_idx + 1) * len(sent_beam_indices)):
            self._advance(additions, row, input_ids[row].tolist(), vocab_scores[row], push_progress)
        if not additions.tokens:
            return sent_beam_scores, sent_beam_tokens, sent_beam_indices
        scores = torch.cat((sent_beam_scores, torch.stack(additions.scores)))
        tokens = torch.cat((sent_beam_tokens, sent_beam_tokens.new_tensor(additions.tokens)))
        rows = torch.cat((sent_beam_indices, sent_beam_indices.new_tensor(additions.rows)))
        best = _interleave_banks(scores, [state.get_bank() for state in additions.states])[: len(sent_beam_indices)]
        return scores[best], tokens[best], rows[best]

    def _advance(
        self, additions: _Continuations, row: int, text: list[int], scores: Tensor, push_progress: bool
    ) -> None:
        """Adds the continuations of one beam that advance the constraints."""
        state = self.make_constraint_states(1)[0]
        state.reset(text)
        if not state.completed:
            for token in state.advance() or ():
                next_state = state.copy(stateful=True)
                next_state.add(token)
                additions.add([*text, token], next_state, row, scores[token])
        elif push_progress:
            score, best = scores.max(dim=0)
            additions.add([*text, int(best)], state, row, score)

    def _open_rows(self, input_ids: Tensor, index: int) -> list[int]:
        """Returns the running beams that satisfy all constraints; all beams if there are too few of them."""
        rows = super()._open_rows(input_ids, index)
        complete = [row for row in rows if self._may_end(input_ids[row])]
        if len(complete) >= self.num_beam_hyps_to_keep:
            return complete
        return complete + [row for row in rows if row not in complete]


def _interleave_banks(scores: Tensor, banks: list[int]) -> Tensor:
    """Returns the order of continuations: the best of each bank, most progress first, then the second best of each."""
    weights = torch.tensor(banks, device=scores.device)
    order = (weights * BANK_WEIGHT + scores).sort(descending=True).indices.tolist()
    ranks: list[int] = []  # rank of each continuation in its bank
    for position, index in enumerate(order):
        same_bank = position > 0 and banks[index] == banks[order[position - 1]]
        ranks.append(ranks[-1] + 1 if same_bank else 0)
    return torch.tensor(
        [index for _, index in sorted(zip(ranks, order, strict=True), key=lambda pair: pair[0])], device=scores.device
    )
