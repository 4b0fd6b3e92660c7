"""The engine's requests and events. They hold token ids, never text."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.errors import PunaError, RequestError, show

FinishReason = Literal["stop", "length"]
"""stop: an end token or a stop string was generated; length: max_tokens were generated."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults choose the most likely token.

    Attributes:
        temperature: divides the logits; 0 chooses the most likely token and ignores the next three fields.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens with at least this total probability (arXiv:1904.09751).
        min_p: drop tokens whose probability is below this fraction of the highest one (arXiv:2407.01082).
        repetition_penalty: for tokens already in the sequence, divides positive logits and multiplies negative ones
            (Keskar et al., arXiv:1909.05858); 1 means no penalty.
        seed: seed of the request's own random generator; None uses a random seed from the operating system.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_between("temperature", self.temperature, 0.0, math.inf)
        _check_between("top_p", self.top_p, 0.0, 1.0)
        _check_between("min_p", self.min_p, 0.0, 1.0)
        _check_between("repetition_penalty", self.repetition_penalty, 1e-6, 1e6)
        if not _is_int(self.top_k) or self.top_k < 0:
            raise RequestError(
                f"top_k is {show(self.top_k)}; it must be a whole number, 0 or more (0 keeps all tokens)"
            )
        if self.seed is not None and (not _is_int(self.seed) or self.seed < 0):
            raise RequestError(f"seed is {show(self.seed)}; it must be a whole number, 0 or more")


@dataclass(frozen=True)
class Request:
    """One sequence to continue, or to score.

    Attributes:
        prompt_ids: token ids, at least one.
        max_tokens: maximum number of tokens to generate; 0 only reads the prompt.
        sampling: how tokens are chosen.
        stop_ids: ids that end the answer; they are not part of it.
        prompt_logits: return the logits of prompt positions.
        logits_from: the first of these positions; tokens before it may come from the prefix cache.
        speculate: guess the next tokens from earlier text, and check several guesses in one step. The answer does not
            change.
        salt: requests share cached prefixes only with requests of the same salt.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    prompt_logits: bool = False
    logits_from: int = 0
    speculate: bool = False
    salt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("the prompt has no tokens; give at least one (the bos token for an empty text)")
        if not _is_int(self.max_tokens) or not 0 <= self.max_tokens < 2**63:
            raise RequestError(f"max_tokens is {show(self.max_tokens)}; it must be a whole number, 0 or more")
        assert 0 <= self.logits_from < len(self.prompt_ids)
        if not isinstance(self.speculate, bool):
            raise RequestError(f"speculate is {show(self.speculate)}; it must be True or False")


@dataclass(frozen=True)
class Event:
    """Progress of one request in one step. A step that accepts several tokens returns one event for each.

    Attributes:
        request_id: the id returned by `Engine.submit`.
        token: id generated in this step; None if the prompt is not complete yet, or a stop id ended the answer.
        prompt_tokens: number of prompt tokens read in this step.
        cached_tokens: number of prompt tokens before them that were found in the prefix cache. Over all events of a
            complete prompt, `prompt_tokens` and `cached_tokens` add up to the prompt's length.
        logits: float32, (prompt_tokens, vocab_size), if the request has `prompt_logits`. Events then do not count the
            tokens before `logits_from`.
        finish_reason: why the request ended with this step; None while it is active.
        error: the error that ended the request: its logits were not finite, or the backend failed.
        stop_id: the stop id that ended the answer.
    """

    request_id: int
    token: int | None = None
    prompt_tokens: int = 0
    logits: NDArray[np.float32] | None = None
    finish_reason: FinishReason | None = None
    error: PunaError | None = None
    stop_id: int | None = None
    cached_tokens: int = 0


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_between(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    too_large = value == math.inf or (isinstance(value, int) and value > sys.float_info.max)
    if not number or not low <= value <= high or too_large:
        limits = f"finite number, {low:g} or more" if high == math.inf else f"number from {low:g} to {high:g}"
        raise RequestError(f"{name} is {show(value)}; it must be a {limits}")
