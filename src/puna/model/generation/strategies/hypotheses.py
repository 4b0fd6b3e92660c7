"""`BeamHypotheses`: the best finished texts of one prompt in the searches that use a `BeamScorer`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from puna.errors import RequestError

Beam = tuple[float, Tensor, "Sequence[int] | Sequence[Tensor] | None"]
"""Score, ids (tokens,) and the row of the batch that each generated token came from."""


class BeamHypotheses:
    """The `num_beams` best finished texts.

    Args:
        num_beams: number of texts to keep.
        length_penalty: the score of a text is its summed log-probability, divided by its length to this power.
        early_stopping: True ends as soon as `num_beams` texts are finished; False when the most likely beam would not
            be among them if it ended now; "never" when no continuation can be among them.
        max_length: maximum length of a text; "never" needs it.

    Raises:
        RequestError: if `early_stopping` is "never" and `max_length` is missing.
    """

    def __init__(
        self, num_beams: int, length_penalty: float, early_stopping: bool | str, max_length: int | None = None
    ) -> None:
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.max_length = max_length
        self.beams: list[Beam] = []
        self.worst_score = 1e9
        if not isinstance(early_stopping, bool) and max_length is None:
            raise RequestError(f"early_stopping is {early_stopping!r}, which needs max_length; give max_length")

    def __len__(self) -> int:
        """Number of finished texts."""
        return len(self.beams)

    def add(
        self,
        hyp: Tensor,
        sum_logprobs: float,
        beam_indices: Sequence[int] | Sequence[Tensor] | None = None,
        generated_len: int | None = None,
    ) -> None:
        """Adds a finished text, and removes the worst one if there are more than `num_beams`.

        Args:
            hyp: (tokens,), the ids without an end token.
            sum_logprobs: the summed log-probability.
            beam_indices: the row of the batch that each generated token came from.
            generated_len: the length that divides the score; by default the number of ids, prompt included.
        """
        length = hyp.shape[-1] if generated_len is None else generated_len
        score = float(sum_logprobs / length**self.length_penalty)
        if len(self) < self.num_beams or score > self.worst_score:
            self.beams.append((score, hyp, beam_indices))
            if len(self) > self.num_beams:
                order = sorted(range(len(self)), key=lambda index: self.beams[index][0])
                self.worst_score = self.beams[order[1]][0]
                del self.beams[order[0]]
            else:
                self.worst_score = min(score, self.worst_score)

    def is_done(self, best_sum_logprobs: float, cur_len: int, decoder_prompt_len: int = 0) -> bool:
        """Returns whether no running beam can improve the finished texts.

        Args:
            best_sum_logprobs: the summed log-probability of the most likely running beam.
            cur_len: the length of the running beams.
            decoder_prompt_len: number of tokens at the start that do not count as length.
        """
        if len(self) < self.num_beams or self.early_stopping is True:
            return len(self) >= self.num_beams
        length = cur_len - decoder_prompt_len
        if self.early_stopping is not False and self.length_penalty > 0 and self.max_length is not None:
            length = self.max_length - decoder_prompt_len  # the sum is negative, so the longest text scores best
        return bool(self.worst_score >= best_sum_logprobs / length**self.length_penalty)
