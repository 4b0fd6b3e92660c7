"""`Sampling`: all options that decide how the next token is chosen. They are passed unchanged from the caller to C.

To add a numeric option, add a field to `Distribution` and to `SamplingOptions` here, to `puna_sampling` in
csrc/include/puna.h, to csrc/sampling.cpp and to model/draw.py.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from puna.errors import RequestError, show

MAX_LOGPROBS = 20
"""Maximum of `logprobs`, as in OpenAI's API."""

_LIMITS = {
    "temperature": (0.0, math.inf), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "typical_p": (1e-6, 1.0),
    "repetition_penalty": (1e-6, 1e6), "presence_penalty": (-1e6, 1e6), "frequency_penalty": (-1e6, 1e6),
    "logit_bias": (-100.0, 100.0),
}  # fmt: skip
"""Lowest and highest value of each option that is a number."""


@dataclass(frozen=True)
class Distribution:
    """The numeric options, which change the probabilities of the tokens: see `SamplingOptions`.

    They are applied in the order of transformers: logit bias, penalties, allowed tokens, temperature, top-k, top-p,
    min-p, typical-p. The C struct puna_sampling has the same fields in the same order.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name in Distribution.__dataclass_fields__.keys() - {"top_k"}:
            _check_between(name, getattr(self, name), *_LIMITS[name])
        _check_whole("top_k", self.top_k, " (0 keeps all tokens)")

    @property
    def counts_tokens(self) -> bool:
        """Whether the next token depends on how often each token occurred."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True)
class Sampling(Distribution):
    """How the next token is chosen: see `SamplingOptions`. The defaults choose the most likely token."""

    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {show(self.logit_bias)}; it must be a mapping from token ids to numbers")
        for token, bias in self.logit_bias.items():
            _check_whole("a token id of logit_bias", token)
            _check_between(f"logit_bias of token {token}", bias, *_LIMITS["logit_bias"])
        for name in ("allowed_token_ids", "stop_token_ids"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(dict.fromkeys(_read_ids(name, getattr(self, name)))))
        if self.allowed_token_ids == ():
            raise RequestError("allowed_token_ids is empty; give at least one id, or None to allow all")
        words = self.bad_words_ids
        ids = tuple(_read_ids("bad_words_ids", tokens) for tokens in words) if isinstance(words, list | tuple) else None
        if ids is None or () in ids:
            raise RequestError(f"bad_words_ids is {show(words)}; it must be a list of lists of at least one token id")
        object.__setattr__(self, "bad_words_ids", ids)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos is {show(self.ignore_eos)}; it must be True or False")
        _check_whole("min_tokens", self.min_tokens)
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, f", at most {MAX_LOGPROBS}", MAX_LOGPROBS)
        if self.seed is not None:
            _check_whole("seed", self.seed)

    def check_vocabulary(self, size: int) -> None:
        """Raises RequestError if a token id is not in a vocabulary of this size."""
        ids: dict[str, Iterable[int]] = {
            "logit_bias": self.logit_bias,
            "allowed_token_ids": self.allowed_token_ids or (),
        }
        ids["bad_words_ids"] = [token for sequence in self.bad_words_ids for token in sequence]
        for name, tokens in {**ids, "stop_token_ids": self.stop_token_ids}.items():
            for token in tokens:
                if token >= size:
                    raise RequestError(f"{name} has the id {show(token)}; the vocabulary has ids 0 to {size - 1}")

    def end_ids(self, eos: frozenset[int]) -> frozenset[int]:
        """Returns the ids that end the answer; `eos` are the model's end tokens."""
        return frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else eos)


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as options. None, or no option, means the model's default."""

    temperature: Annotated[
        float | None,
        "divides the logits; 0 chooses the most likely token, and the next four options do nothing.",
    ]
    top_k: Annotated[int | None, "choose from the k most likely tokens; 0 means from all."]
    top_p: Annotated[
        float | None,
        "choose from the smallest set of most likely tokens with at least this total probability (arXiv:1904.09751).",
    ]
    min_p: Annotated[
        float | None,
        "exclude tokens whose probability is below this fraction of the highest one (arXiv:2407.01082).",
    ]
    typical_p: Annotated[
        float | None,
        "choose from the tokens whose surprise, -log p, is closest to the entropy, with at least this total "
        "probability (arXiv:2202.00666); 1 means from all.",
    ]
    repetition_penalty: Annotated[
        float | None,
        "above 1, tokens of the prompt and the answer become less likely: positive logits are divided by it, negative "
        "ones multiplied (arXiv:1909.05858).",
    ]
    presence_penalty: Annotated[
        float | None, "is subtracted from the logits of tokens that are in the answer, as in OpenAI's API."
    ]
    frequency_penalty: Annotated[
        float | None,
        "is multiplied by the number of times that a token is in the answer, and subtracted from its logit, as in "
        "OpenAI's API.",
    ]
    logit_bias: Annotated[
        Mapping[int, float] | None,
        "numbers from -100 to 100 that are added to the logits of token ids, as in OpenAI's API.",
    ]
    allowed_token_ids: Annotated[Sequence[int] | None, "the only ids that may be chosen; None allows all."]
    bad_words_ids: Annotated[Sequence[Sequence[int]] | None, "sequences of ids that the answer must not contain."]
    stop_token_ids: Annotated[Sequence[int] | None, "further ids that end the answer."]
    ignore_eos: Annotated[
        bool | None, "the model's end tokens do not end the answer; stop_token_ids and stop still do."
    ]
    min_tokens: Annotated[
        int | None,
        "minimum number of tokens of the answer: before, ids that end the answer cannot be chosen, and stop strings do "
        "not end it.",
    ]
    logprobs: Annotated[
        int | None,
        "return the log-probability of each token, and this number of most likely tokens with theirs, at most 20. They "
        "are the model's own: no option changes them.",
    ]
    seed: Annotated[int | None, "makes sampling repeatable; None uses a random seed."]


def _read_ids(name: str, values: Any) -> tuple[int, ...]:
    try:
        ids = tuple(values)
    except TypeError:
        raise RequestError(f"{name} is {show(values)}; it must be a list of token ids") from None
    for token in ids:
        _check_whole(f"a token id of {name}", token)
    return tuple(map(int, ids))


def _check_whole(name: str, value: object, limit: str = "", highest: float = math.inf) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not 0 <= value <= highest:  # type: ignore[operator]
        raise RequestError(f"{name} is {show(value)}; it must be a whole number, 0 or more{limit}")


def _check_between(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    too_large = value == math.inf or (isinstance(value, int) and value > sys.float_info.max)
    if not number or not low <= value <= high or too_large:
        limits = f"finite number, {low:g} or more" if high == math.inf else f"number from {low:g} to {high:g}"
        raise RequestError(f"{name} is {show(value)}; it must be a {limits}")
