"""What is asked of the engine, and what it reports. Token ids only: text begins and ends outside."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.errors import BackendError, RequestError

FinishReason = Literal["stop", "length"]
"""stop: an end-of-text token or a stop string came; length: max_tokens were generated."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults take the likeliest token.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token and ignores the three filters below.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that make up this probability (Holtzman et al., arXiv:1904.09751).
        min_p: drop tokens less likely than this share of the likeliest (arXiv:2407.01082).
        repetition_penalty: tokens already in the sequence have positive logits divided and negative ones multiplied by
            it (Keskar et al., arXiv:1909.05858); 1 is none.
        seed: of this request's own random generator; None draws one from the system.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, math.inf)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 1e-6, 1e6)
        if not _is_int(self.top_k) or self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k!r}; it must be a whole number, 0 or more (0 keeps all tokens)")
        if self.seed is not None and (not _is_int(self.seed) or self.seed < 0):
            raise RequestError(f"seed is {self.seed!r}; it must be a whole number, 0 or more")


@dataclass(frozen=True)
class Request:
    """One sequence to continue, or to score.

    Attributes:
        prompt_ids: token ids, at least one.
        max_tokens: most tokens to generate; 0 only reads the prompt.
        sampling: how tokens are chosen.
        stop_ids: ids that end the answer; the one that ends it is not part of the answer.
        prompt_logits: report the logits of every prompt position.
        speculate: guess following tokens from what followed the same words earlier in the sequence, and read several at
            once where the guess proves right. The answer stays the same.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    prompt_logits: bool = False
    speculate: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("the prompt has no tokens; give at least one (the bos token starts an empty text)")
        if not _is_int(self.max_tokens) or self.max_tokens < 0:
            raise RequestError(f"max_tokens is {self.max_tokens!r}; it must be a whole number, 0 or more")
        if not isinstance(self.speculate, bool):
            raise RequestError(f"speculate is {self.speculate!r}; it must be True or False")


@dataclass(frozen=True)
class Event:
    """What one step did for one request: one event, or one for each token of a guess that proved right.

    Attributes:
        request_id: the number `Engine.submit` returned.
        token: id generated in this step, or None (a piece of the prompt was read, or a stop id ended the answer).
        prompt_tokens: tokens of the prompt read in this step.
        logits: float32, (prompt_tokens, vocab_size), when the request asked for them.
        finish_reason: why the request ended with this step; None while it goes on.
        error: what ended the request instead: its logits were not finite. Its neighbours go on.
    """

    request_id: int
    token: int | None = None
    prompt_tokens: int = 0
    logits: NDArray[np.float32] | None = None
    finish_reason: FinishReason | None = None
    error: BackendError | None = None


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _within(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not low <= value <= high or value == math.inf:
        raise RequestError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
