"""Beam scorers: they choose the beams of the next step and keep finished texts, with the classes of transformers.

`process` receives the best continuations of one step, `finalize` returns the finished texts. Diverse and constrained
beam search use them, and so does code that passes a scorer to `model.beam_search`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError, show
from puna.model.generation.strategies.hypotheses import BeamHypotheses

Ends = int | Sequence[int] | Tensor | None
"""The id or ids that end a text."""

Parents = Sequence[Sequence[int]]
"""Per beam, the rows of the batch that its generated tokens came from."""


class BeamScorer(ABC):
    """Base class of beam scorers."""

    @abstractmethod
    def process(
        self, input_ids: Tensor, next_scores: Tensor, next_tokens: Tensor, next_indices: Tensor
    ) -> dict[str, Tensor]:
        """Chooses the beams of the next step. Subclasses have further arguments.

        Args:
            input_ids: (batch x beams, tokens), the running beams.
            next_scores: (batch, candidates), summed log-probabilities of the best continuations, in descending order.
            next_tokens: (batch, candidates), their tokens.
            next_indices: (batch, candidates), the beam of the prompt that each continues.

        Returns:
            `next_beam_scores`, `next_beam_tokens` and `next_beam_indices` (rows of `input_ids`), each (batch x beams,).
        """

    @abstractmethod
    def finalize(
        self,
        input_ids: Tensor,
        next_scores: Tensor,
        next_tokens: Tensor,
        next_indices: Tensor,
        max_length: int | None,
    ) -> dict[str, Any]:
        """Returns the best texts. Subclasses have further arguments.

        Args:
            input_ids: (batch x beams, tokens), the running beams.
            next_scores: (batch x beams,), their summed log-probabilities.
            next_tokens, next_indices: those of the last step.
            max_length: maximum length of a text with its end token; None: no maximum.

        Returns:
            `sequences` (batch x texts, tokens), `sequence_scores` (batch x texts,) and `beam_indices`.
        """


@dataclass
class Candidates:
    """The continuations of one prompt in one step, in descending order of their scores."""

    scores: list[float]
    tokens: list[int]
    beams: list[int]


@dataclass
class Step:
    """The arguments of `process` that are the same for all prompts."""

    ids: Tensor  # (batch x beams, tokens)
    ends: tuple[int, ...]
    pad: int | Tensor | None
    parents: Parents | None  # of each row of `ids`
    group: int  # the group that the rows belong to
    prompt_length: int | None  # tokens that do not count as length; None counts all


class HypothesisScorer(BeamScorer):
    """The common part of both scorers: a list of finished texts for each prompt and group.

    Args:
        batch_size: number of prompts.
        num_beams: beams per prompt.
        device: device of the tensors.
        length_penalty, do_early_stopping, max_length: as in `BeamHypotheses`.
        num_beam_hyps_to_keep: number of texts that `finalize` returns per prompt.
        num_beam_groups: number of groups that the beams are divided into.

    Raises:
        RequestError: if `num_beams` is below 2 or cannot be divided into groups.
    """

    def __init__(
        self,
        batch_size: int,
        num_beams: int,
        device: torch.device | str,
        length_penalty: float = 1.0,
        do_early_stopping: bool | str = False,
        num_beam_hyps_to_keep: int = 1,
        num_beam_groups: int = 1,
        max_length: int | None = None,
    ) -> None:
        if not isinstance(batch_size, int) or not 0 <= batch_size < 2**31:
            raise RequestError(f"batch_size is {show(batch_size)}; it must be a number of prompts")
        if not isinstance(num_beams, int) or num_beams <= 1:
            raise RequestError(f"num_beams is {num_beams!r}; a beam search needs an integer of at least 2")
        if not isinstance(num_beam_groups, int) or num_beam_groups < 1 or num_beams % num_beam_groups:
            raise RequestError(
                f"num_beam_groups is {num_beam_groups!r}; it must be an integer that divides num_beams, {num_beams}"
            )
        self.num_beams = num_beams
        self.device = device
        self.length_penalty = length_penalty
        self.do_early_stopping = do_early_stopping
        self.num_beam_hyps_to_keep = num_beam_hyps_to_keep
        self.num_beam_groups = num_beam_groups
        self.group_size = num_beams // num_beam_groups
        self._is_init = False
        self._beam_hyps = [
            BeamHypotheses(self.group_size, length_penalty, do_early_stopping, max_length)
            for _ in range(batch_size * num_beam_groups)
        ]  # the groups of a prompt are adjacent
        self._done = torch.zeros(len(self._beam_hyps), dtype=torch.bool, device=device)

    @property
    def is_done(self) -> bool:
        """Whether all prompts are finished."""
        return bool(self._done.all())

    def _next_beams(
        self, step: Step, scores: Tensor, tokens: Tensor, beams: Tensor, vocab_scores: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Chooses the beams of the next step, and keeps the texts that end in it; see `process`."""
        batch = len(self._beam_hyps) // self.num_beam_groups
        if batch * self.group_size != step.ids.shape[0]:
            raise RequestError(
                f"input_ids has {step.ids.shape[0]} rows; the scorer expects {self.group_size} beams for each of "
                f"{batch} prompts"
            )
        chosen: list[Candidates] = []
        for prompt in range(batch):
            index = prompt * self.num_beam_groups + step.group
            if self._done[index]:
                chosen.append(self._padding(step))
                continue
            candidates = Candidates(scores[prompt].tolist(), tokens[prompt].tolist(), beams[prompt].tolist())
            best = self._choose(step, prompt, self._beam_hyps[index], candidates)
            chosen.append(self._rearrange(step, prompt, best, vocab_scores))
            self._done[index] = self._beam_hyps[index].is_done(
                max(candidates.scores), step.ids.shape[1] + 1, step.prompt_length or 0
            )
        return {
            "next_beam_scores": scores.new_tensor([score for part in chosen for score in part.scores]),
            "next_beam_tokens": tokens.new_tensor([token for part in chosen for token in part.tokens]),
            "next_beam_indices": beams.new_tensor([row for part in chosen for row in part.beams]),
        }

    def _padding(self, step: Step) -> Candidates:
        if not step.ends or step.pad is None:
            raise RequestError("a prompt is finished and others are not; give eos_token_id and pad_token_id")
        return Candidates([0.0] * self.group_size, [int(step.pad)] * self.group_size, [0] * self.group_size)

    def _choose(self, step: Step, prompt: int, finished: BeamHypotheses, candidates: Candidates) -> Candidates:
        """Keeps the continuations that end, and returns the best ones that do not; their `beams` are rows."""
        chosen = Candidates([], [], [])
        ranked = zip(candidates.scores, candidates.tokens, candidates.beams, strict=True)
        for rank, (score, token, beam) in enumerate(ranked):
            row = prompt * self.group_size + beam
            if token in step.ends:
                # A text that ends is kept only if it is among the best; otherwise better ones are still running.
                if rank < self.group_size and self._may_end(step.ids[row]):
                    origin = prompt * self.num_beams + step.group * self.group_size + beam
                    parents = None if step.parents is None else (*step.parents[row], origin)
                    length = None if step.prompt_length is None else step.ids.shape[1] + 1 - step.prompt_length
                    finished.add(step.ids[row].clone(), score, beam_indices=parents, generated_len=length)
                continue
            chosen.scores.append(score)
            chosen.tokens.append(token)
            chosen.beams.append(row)
            if len(chosen.tokens) == self.group_size:
                return chosen
        raise RequestError(
            f"only {len(chosen.tokens)} of {len(candidates.tokens)} continuations do not end the text, but "
            f"{self.group_size} beams must continue; give the scorer more continuations"
        )

    def _may_end(self, ids: Tensor) -> bool:
        """Returns whether a text of these ids may end."""
        return True

    def _rearrange(self, step: Step, prompt: int, beams: Candidates, vocab_scores: Tensor | None) -> Candidates:
        """Returns the beams of the next step, given the best continuations."""
        return beams

    def finalize(
        self,
        input_ids: Tensor,
        final_beam_scores: Tensor,
        final_beam_tokens: Tensor,
        final_beam_indices: Tensor,
        max_length: int | None,
        pad_token_id: int | Tensor | None = None,
        eos_token_id: Ends = None,
        beam_indices: Parents | None = None,
        decoder_prompt_len: int | None = None,
    ) -> dict[str, Any]:
        """Adds the running beams of unfinished prompts to the finished texts, and returns the best texts.

        Args:
            input_ids: (batch x beams, tokens); with groups, the groups of a prompt are adjacent.
            final_beam_scores: (batch x beams,), summed log-probabilities.
            final_beam_tokens, final_beam_indices: not used.
            max_length: maximum length of a text with its end token; None: no maximum.
            pad_token_id, eos_token_id, beam_indices, decoder_prompt_len: as in `process`.

        Raises:
            RequestError: if texts differ in length and `pad_token_id` is missing.
        """
        for index, finished in enumerate(self._beam_hyps):
            if not self._done[index]:
                for row in self._open_rows(input_ids, index):
                    length = None if decoder_prompt_len is None else input_ids.shape[1] - decoder_prompt_len
                    history = None if beam_indices is None else beam_indices[row]
                    finished.add(input_ids[row], float(final_beam_scores[row]), history, length)
        best = []
        for start in range(0, len(self._beam_hyps), self.num_beam_groups):
            groups = self._beam_hyps[start : start + self.num_beam_groups]
            ordered = sorted((beam for group in groups for beam in group.beams), key=lambda beam: beam[0])
            best += ordered[: -self.num_beam_hyps_to_keep - 1 : -1]
        scores = torch.tensor([score for score, _, _ in best], dtype=torch.float32, device=self.device)
        sequences, parents = _join(
            [ids for _, ids, _ in best], [rows for _, _, rows in best], max_length, pad_token_id, end_ids(eos_token_id)
        )
        return {"sequences": sequences, "sequence_scores": scores, "beam_indices": parents}

    def _open_rows(self, input_ids: Tensor, index: int) -> list[int]:
        """Returns the rows of the running beams that `finalize` adds to group `index`."""
        return list(range(index * self.group_size, (index + 1) * self.group_size))


class BeamSearchScorer(HypothesisScorer):
    """The scorer of beam search and diverse beam search; its arguments are those of `HypothesisScorer`."""

    def process(
        self,
        input_ids: Tensor,
        next_scores: Tensor,
        next_tokens: Tensor,
        next_indices: Tensor,
        pad_token_id: int | Tensor | None = None,
        eos_token_id: Ends = None,
        beam_indices: Parents | None = None,
        group_index: int = 0,
        decoder_prompt_len: int | None = None,
    ) -> dict[str, Tensor]:
        """Chooses the beams of the next step, and keeps the texts that end in it.

        Args:
            input_ids, next_scores, next_tokens, next_indices: as in `BeamScorer.process`.
            pad_token_id: fills the beams of finished prompts; required once a prompt is finished.
            eos_token_id: the id or ids that end a text.
            beam_indices: per row of `input_ids`, the rows that its generated tokens came from.
            group_index: the group that the rows belong to.
            decoder_prompt_len: number of tokens of the prompt, which then do not count as length.

        Raises:
            RequestError: if the number of rows is wrong, too many continuations end, or a prompt is finished and
                `pad_token_id` or `eos_token_id` is missing.
        """
        step = Step(
            input_ids, end_ids(eos_token_id), pad_token_id, beam_indices, group_index, decoder_prompt_len
        )  # fmt: skip
        return self._next_beams(step, next_scores, next_tokens, next_indices)


def end_ids(eos: Ends) -> tuple[int, ...]:
    """Returns the end tokens as a tuple."""
    if eos is None:
        return ()
    if isinstance(eos, Tensor):
        return tuple(eos.flatten().tolist())
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _join(
    texts: list[Tensor], parents: list[Any], max_length: int | None, pad: int | Tensor | None, ends: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Returns texts (texts, tokens), each with the first end token if it fits, and the rows of their tokens."""
    lengths = [len(text) for text in texts]
    width = max(lengths) + bool(ends)
    if max_length is not None:
        width = max(max(lengths), min(width, max_length))
    if pad is None and min(lengths) != max(lengths):
        raise RequestError("texts differ in length, but there is no padding token; give pad_token_id")
    ids = texts[0].new_full((len(texts), width), 0 if pad is None else int(pad))
    rows = None if parents[0] is None else texts[0].new_full((len(texts), width), -1)
    for index, text in enumerate(texts):
        ids[index, : lengths[index]] = text
        if rows is not None and parents[index] is not None:
            rows[index, : len(parents[index])] = torch.tensor([int(row) for row in parents[index]], dtype=rows.dtype)
        if lengths[index] < width and ends:
            ids[index, lengths[index]] = ends[0]
    return ids, rows
