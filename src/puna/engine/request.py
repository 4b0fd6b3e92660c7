"""The engine's requests and events. They hold token ids, never text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from puna.config import Sampling
from puna.engine.adapter import LoadedAdapter
from puna.engine.grammar import Grammar
from puna.errors import PunaError, RequestError, show
from puna.lazy import cached_property
from puna.native.sampling import TokenLogprobs

FinishReason = Literal["stop", "length", "invalid"]
"""stop: an end token or a stop string was generated, or the grammar allows no further token; length: max_tokens were
generated; invalid: the answer ended, but its text does not follow its grammar."""


MAX_SALT = 1024
"""Maximum number of characters of a salt. It is hashed with each request."""


@dataclass(frozen=True)
class Request:
    """One sequence to continue, or to score.

    Attributes:
        prompt_ids: token ids, at least one.
        max_tokens: maximum number of tokens to generate; 0 only reads the prompt.
        sampling: how tokens are chosen.
        stop_ids: the model's end tokens, which end the answer and are not part of it; see also `end_ids`.
        prompt_logits: return the logits of prompt positions.
        output: "hidden" returns the hidden states of prompt positions; no tokens are generated.
        logits_from: the first of these positions; tokens before it may come from the prefix cache.
        speculate: guess the next tokens from earlier text, and check several guesses in one step. The answer does not
            change.
        salt: requests share cached prefixes only with requests of the same salt and the same adapter.
        prediction: tokens that the answer is expected to resemble: guesses for `speculate`, without other effects.
        explains_prefix: whether an event contains the reason why the prefix cache did not contain the complete prompt.
        priority: of the waiting requests, those with the lowest number run first.
        candidate: number of the answer, among several answers to one prompt; each number draws other random numbers
            from the same seed.
        adapter: changes the model for this request.
        grammar: the grammar of the answer; None allows all tokens. End tokens may be chosen where the answer may end.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    prompt_logits: bool = False
    output: Literal["tokens", "hidden"] = "tokens"
    logits_from: int = 0
    speculate: bool = False
    salt: str = ""
    prediction: tuple[int, ...] = ()
    explains_prefix: bool = False
    priority: int = 0
    candidate: int = 0
    adapter: LoadedAdapter | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("the prompt has no tokens; give at least one (the bos token for an empty text)")
        if not _is_int(self.max_tokens) or self.max_tokens < 0:
            raise RequestError(f"max_tokens is {show(self.max_tokens)}; it must be a whole number, 0 or more")
        assert 0 <= self.logits_from < len(self.prompt_ids)
        assert self.output == "tokens" or (self.max_tokens == 0 and not self.prompt_logits)
        if not isinstance(self.speculate, bool):
            raise RequestError(f"speculate is {show(self.speculate)}; it must be True or False")
        if (
            not isinstance(self.salt, str)
            or len(self.salt) > MAX_SALT
            or any("\ud800" <= c <= "\udfff" for c in self.salt)
        ):
            raise RequestError(f"salt is {show(self.salt)}; it must be a text of at most {MAX_SALT} valid characters")
        if not _is_int(self.priority) or abs(self.priority) >= 2**63:
            raise RequestError(
                f"priority is {show(self.priority)}; it must be a whole number from {1 - 2**63} to "
                f"{2**63 - 1}; requests with lower numbers run first"
            )
        sampling, allowed = self.sampling, self.sampling.allowed_token_ids
        if sampling.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {show(sampling.min_tokens)}, but max_tokens is {show(self.max_tokens)}; raise "
                "max_tokens or lower min_tokens"
            )
        if sampling.min_tokens > 0 and allowed is not None and self.end_ids.issuperset(allowed):
            raise RequestError(
                "allowed_token_ids has only ids that end the answer, which min_tokens "
                f"({sampling.min_tokens}) forbids; set min_tokens to 0, or allow further ids"
            )

    @property
    def returns_rows(self) -> bool:
        """Whether events have rows of output for the prompt positions from `logits_from` on."""
        return self.prompt_logits or self.output == "hidden"

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end the answer."""
        return self.sampling.end_ids(self.stop_ids)

    @property
    def adapter_name(self) -> str:
        """Name of the adapter; "" if there is none."""
        return "" if self.adapter is None else self.adapter.name

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens of the adapter, which precede the prompt."""
        return 0 if self.adapter is None else self.adapter.virtual_tokens

    @property
    def prefix_length(self) -> int:
        """Number of virtual tokens whose keys and values the adapter has."""
        return 0 if self.adapter is None else self.adapter.prefix_length

    @cached_property
    def first_tokens(self) -> tuple[int, ...]:
        """The ids of the virtual tokens, which are 0, and of the prompt."""
        return (0,) * self.virtual_tokens + self.prompt_ids

    @property
    def page_salt(self) -> str:
        """The salt of the pages: the adapter's digest, which has no spaces, or nothing, and the request's salt."""
        return f"{'' if self.adapter is None else self.adapter.digest} {self.salt}"


MissReason = Literal["empty", "adapter", "salt", "input", "end", "evicted"]


@dataclass(frozen=True)
class PrefixMiss:
    """Why the prefix cache did not have all of a prompt.

    Attributes:
        reason: "empty": no recent sequence begins with the prompt's first token. "adapter", "salt": only sequences with
            another adapter or salt do. "input": the token at `position` differs. "end": the most similar sequence ends
            at `position`. "evicted": the cache has reused the pages of this sequence, or they were not complete.
        position: number of tokens with which both the prompt and the most similar sequence begin.
        token: the prompt's token there.
        other: the token of the sequence there; None unless the reason is "input".
    """

    reason: MissReason
    position: int
    token: int | None = None
    other: int | None = None


class Event(NamedTuple):
    """Progress of one request in one step. A step that accepts several tokens returns one event for each.

    Attributes:
        request_id: the id returned by `Engine.submit`.
        token: id generated in this step; None if the prompt is not complete yet, or a stop id ended the answer.
        prompt_tokens: number of prompt tokens read in this step.
        cached_tokens: number of prompt tokens before them that were found in the prefix cache. Over all events of a
            complete prompt, `prompt_tokens` and `cached_tokens` add up to the prompt's length.
        logits: float32, (prompt_tokens, vocab_size), if the request has `prompt_logits`. Events then do not count the
            tokens before `logits_from`.
        hidden: the same for a request whose output is "hidden": the states after the final norm, float32,
            (prompt_tokens, D).
        prefix_miss: why the prefix cache did not have all of the prompt, if the request asks for it: once, when the
            prompt has been read, and not if the cache had all of it.
        prediction: with the end of an answer that has a prediction: numbers of tokens of the prediction that the answer
            has, and of its other tokens.
        finish_reason: why the request ended with this step; None while it is active.
        error: the error that ended the request: its logits were not finite, no token was allowed, or the backend
            failed.
        stop_id: the id that ended the answer.
        logprobs: the log-probabilities of `token` or `stop_id`, if the request's sampling has `logprobs`.
    """

    request_id: int
    token: int | None = None
    prompt_tokens: int = 0
    logits: NDArray[np.float32] | None = None
    finish_reason: FinishReason | None = None
    error: PunaError | None = None
    stop_id: int | None = None
    cached_tokens: int = 0
    logprobs: TokenLogprobs | None = None
    hidden: NDArray[np.float32] | None = None
    prefix_miss: PrefixMiss | None = None
    prediction: tuple[int, int] | None = None


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
