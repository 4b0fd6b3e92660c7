"""Candidate tokens for assisted generation: drafts of a smaller model, or tokens from earlier in the text.

Legend: T tokens so far, C candidates, V vocabulary. Assisted generation has one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Scores = Callable[[Tensor, Tensor], Tensor]
"""(ids (1, tokens), logits (1, V)) -> scores (1, V), after all processors."""


class Candidates(Protocol):
    """A source of candidate tokens."""

    def propose(self, ids: Tensor, limit: int) -> tuple[Tensor, Tensor | None]:
        """Returns at most `limit` candidates for the tokens after `ids`, (1, T).

        Returns:
            The candidates, (1, C), and the scores they were drawn from, (1, C, V), or None if they were not drawn.
        """

    def update(self, proposed: int, accepted: int) -> None:
        """Receives the result of the verification."""


@dataclass
class DraftSettings:
    """How an assistant model drafts tokens.

    Attributes:
        tokens: number of tokens of a draft.
        adaptive: add 2 to `tokens` when all candidates were accepted, and subtract 1 otherwise.
        threshold: a draft ends after a token whose probability is below this; None: no limit.
        ends: the tokens that end a text, and therefore a draft.
    """

    tokens: int
    adaptive: bool
    threshold: float | None
    ends: tuple[int, ...]


class AssistantCandidates:
    """Drafts of an assistant model, which has the same vocabulary as the model.

    Args:
        forward: computes the assistant's logits; it has the methods of `Forward`.
        mask: (1, prompt tokens), 0 for padding, on the device of the assistant.
        settings: how to draft.
        process: changes the assistant's logits in the same way as those of the model.
        choose: returns the next token, (1,), from scores, (1, V); None chooses the most likely token.
    """

    def __init__(
        self, forward: Any, mask: Tensor, settings: DraftSettings, process: Scores, choose: Any = None
    ) -> None:
        self.settings = settings
        self._forward, self._mask, self._process, self._choose = forward, mask, process, choose
        self._cache: Any = None
        self._cached = 0  # number of tokens in the cache

    def propose(self, ids: Tensor, limit: int) -> tuple[Tensor, Tensor | None]:
        """See `Candidates`."""
        start, scores = ids.shape[1], []
        self.forget(start - 1)
        for _ in range(min(self.settings.tokens, limit)):
            out = self._forward.forward(ids.to(self._mask.device), self._mask_of(ids), self._cache)
            self._cache, self._cached = out.past_key_values, ids.shape[1]
            scores.append(self._process(ids, out.logits[:, -1].float().to(ids.device)))
            token = scores[-1].argmax(dim=-1) if self._choose is None else self._choose(scores[-1])
            ids = torch.cat((ids, token[:, None]), dim=1)
            if int(token) in self.settings.ends or self._is_unsure(scores[-1], token):
                break
        drawn = torch.stack(scores, dim=1) if scores and self._choose is not None else None
        return ids[:, start:], drawn

    def update(self, proposed: int, accepted: int) -> None:
        """See `Candidates`."""
        if self.settings.adaptive:
            tokens = self.settings.tokens
            self.settings.tokens = tokens + 2 if accepted == proposed else max(1, tokens - 1)

    def forget(self, length: int) -> None:
        """Removes all but the first `length` tokens from the cache."""
        self._cached = min(self._cached, length)
        self._cache = self._forward.crop(self._cache, self._cached) if self._cached else None

    def _mask_of(self, ids: Tensor) -> Tensor:
        added = ids.shape[1] - self._mask.shape[1]
        return torch.cat((self._mask, self._mask.new_ones((1, max(0, added)))), dim=1)[:, : ids.shape[1]]

    def _is_unsure(self, scores: Tensor, token: Tensor) -> bool:
        threshold = self.settings.threshold
        return threshold is not None and float(scores.softmax(dim=-1)[0, token]) < threshold


class TranslatedCandidates:
    """Drafts of an assistant model with another tokenizer: the text is decoded and encoded again, in both directions.

    The candidates are the tokens that the draft adds to the text; there are none if the draft changes earlier tokens.
    Speculative sampling does not use such candidates, because their distribution is not known.

    Args:
        assistant: drafts tokens of its own vocabulary.
        tokenizer: the tokenizer of the model.
        assistant_tokenizer: the tokenizer of the assistant.
    """

    def __init__(self, assistant: AssistantCandidates, tokenizer: Any, assistant_tokenizer: Any) -> None:
        self._assistant, self._tokenizer, self._assistant_tokenizer = assistant, tokenizer, assistant_tokenizer
        self._previous: list[int] = []

    def propose(self, ids: Tensor, limit: int) -> tuple[Tensor, None]:
        """See `Candidates`."""
        text = self._tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
        assistant_ids: list[int] = self._assistant_tokenizer(text)["input_ids"]
        if limit <= 0 or not assistant_ids:
            return ids[:, :0], None
        self._assistant.forget(_common_start(assistant_ids, self._previous))
        draft, _ = self._assistant.propose(ids.new_tensor([assistant_ids]), limit)
        self._previous = assistant_ids + draft[0].tolist()
        longer = self._assistant_tokenizer.decode(self._previous, skip_special_tokens=True)
        before, after = self._tokenizer(text)["input_ids"], self._tokenizer(longer)["input_ids"]
        if _common_start(before, after) < len(before):
            return ids[:, :0], None
        return ids.new_tensor([after[len(before) :][:limit]]), None

    def update(self, proposed: int, accepted: int) -> None:
        """See `Candidates`."""
        self._assistant.update(proposed, accepted)


def _common_start(first: list[int], second: list[int]) -> int:
    """Returns the number of equal tokens at the start of both lists."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


class PromptLookup:
    """Proposes the tokens that followed an earlier occurrence of the text's last tokens.

    Args:
        tokens: maximum number of candidates.
        ngram: maximum number of last tokens to search for; fewer are searched for if there is no earlier occurrence.
        ends: the tokens that end a text; a candidate list ends before them.
        vocabulary: V.
        process: the processors; a candidate that they forbid, and those after it, are left out.
    """

    def __init__(self, tokens: int, ngram: int, ends: tuple[int, ...], vocabulary: int, process: Scores) -> None:
        self._tokens, self._ngram, self._ends = tokens, ngram, ends
        self._vocabulary, self._process = vocabulary, process

    def propose(self, ids: Tensor, limit: int) -> tuple[Tensor, None]:
        """See `Candidates`."""
        text = ids[0].tolist()
        if limit <= 0:
            return ids[:, :0], None
        for size in range(min(self._ngram, len(text) - 1), 0, -1):
            for start in range(len(text) - size):
                if text[start : start + size] == text[-size:]:
                    candidates = self._allowed(ids, text[start + size : start + size + self._tokens])
                    if candidates:
                        return ids.new_tensor([self._before_end(candidates)]), None
        return ids[:, :0], None

    def update(self, proposed: int, accepted: int) -> None:
        """Does nothing: the number of candidates is constant."""

    def _allowed(self, ids: Tensor, candidates: list[int]) -> list[int]:
        """Returns the candidates before the first one that the processors forbid."""
        scores = torch.ones((1, self._vocabulary), device=ids.device)
        lowest = torch.finfo(scores.dtype).min
        for index, token in enumerate(candidates):
            text = torch.cat((ids, ids.new_tensor([candidates[:index]])), dim=1)
            if float(self._process(text, scores)[0, token]) <= lowest:
                return candidates[:index]
        return candidates

    def _before_end(self, candidates: list[int]) -> list[int]:
        ends = [index for index, token in enumerate(candidates) if token in self._ends]
        return candidates[: ends[0]] if ends else candidates
