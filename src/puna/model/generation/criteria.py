"""Stopping criteria: functions that decide after each token which rows have ended.

A criterion is a function `(input_ids (rows, tokens), scores) -> bool`, for all rows or one per row, (rows,). The
classes have the names and signatures of those of transformers.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from puna.config import GenerationConfig
from puna.errors import RequestError, show
from puna.model.generation.merging import merge_lists
from puna.model.generation.processors.base import check_integer, number, token_tensor
from puna.model.generation.stop_strings import StopStrings

Criterion = Callable[..., Any]
"""A `StoppingCriteria`, or any function with the same arguments. transformers' own criteria are accepted, too."""


class Ended(Tensor):
    """Which rows have ended: bool, (rows,).

    In a condition, it is true if all rows have ended. Code for transformers 4 expects one bool, and code for
    transformers 5 a tensor. Operations return ordinary tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.as_subclass(Tensor).all().item())


class StoppingCriteria:
    """Base class of stopping criteria."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Returns which rows have ended: bool for all rows, or (rows,).

        Args:
            input_ids: (rows, tokens): prompt and answer.
            scores: the scores of the last step, (rows, vocabulary), or of all steps, a tuple.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__; define it in a subclass")


class MaxLengthCriteria(StoppingCriteria):
    """Ends all rows at `max_length` tokens of prompt and answer.

    Args:
        max_position_embeddings: the model's context; a longer row causes a warning.
    """

    def __init__(self, max_length: Any, max_position_embeddings: int | None = None) -> None:
        if isinstance(max_length, str | bytes | list | tuple | dict | type):
            raise RequestError(f"max_length is {show(max_length)}; it must be a number of tokens")
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings
        self._warned = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows have ended, (rows,)."""
        tokens = input_ids.shape[1]
        done, context = tokens >= self.max_length, self.max_position_embeddings
        if context is not None and not done and tokens > context and not self._warned:
            self._warned = True
            warnings.warn(
                f"the rows have {tokens} tokens, more than the model's context (max_position_embeddings), {context}; "
                "further tokens may be wrong. Set max_length or max_new_tokens to a lower value",
                stacklevel=2,
            )
        return _all_rows(input_ids, done)


class MaxNewTokensCriteria(StoppingCriteria):
    """Ends all rows `max_new_tokens` tokens after `start_length`. transformers 5 has only `MaxLengthCriteria`."""

    def __init__(self, start_length: int, max_new_tokens: int) -> None:
        check_integer("start_length", start_length, 0)
        check_integer("max_new_tokens", max_new_tokens, 0)
        self.start_length = start_length
        self.max_new_tokens = max_new_tokens
        self.max_length = start_length + max_new_tokens
        warnings.warn(
            f"MaxNewTokensCriteria is deprecated; use MaxLengthCriteria(max_length={self.max_length})",
            FutureWarning,
            stacklevel=2,
        )

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows have ended, (rows,)."""
        return _all_rows(input_ids, input_ids.shape[1] >= self.max_length)


class MaxTimeCriteria(StoppingCriteria):
    """Ends all rows `max_time` seconds after `initial_timestamp`, which is by default the time of construction."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        number("max_time", max_time, "of seconds", -math.inf, math.inf)
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows have ended, (rows,)."""
        return _all_rows(input_ids, time.time() - self.initial_timestamp > self.max_time)


class EosTokenCriteria(StoppingCriteria):
    """Ends a row whose last token is an end token."""

    def __init__(self, eos_token_id: int | list[int] | Tensor) -> None:
        self.eos_token_id = token_tensor(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Any, new_token_length: int = 1, **kwargs: Any) -> Tensor:
        """Returns which rows have ended, (rows,); `new_token_length` is the number of tokens that are examined."""
        self.eos_token_id = self.eos_token_id.to(input_ids.device)
        return torch.isin(input_ids[:, -new_token_length:], self.eos_token_id).any(dim=-1).as_subclass(Ended)


class StopStringCriteria(StoppingCriteria):
    """Ends a row whose last token completes one of the stop strings.

    The string may start and end inside a token. A string that ends before the last token does not count.

    Args:
        tokenizer: the model's tokenizer, of this package or of transformers.
        stop_strings: a string or several.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | list[str]) -> None:
        if not isinstance(stop_strings, str | list | tuple):
            raise RequestError(f"stop_strings is {show(stop_strings)}; it must be a text or a list of texts")
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        self._matcher = StopStrings(tokenizer, self.stop_strings)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows have ended, (rows,)."""
        ended = [self._matcher.ends(row) for row in input_ids[:, -self._matcher.window :].tolist()]
        return torch.tensor(ended, device=input_ids.device).as_subclass(Ended)


class ConfidenceCriteria(StoppingCriteria):
    """Ends a draft of an assistant model whose last token has a probability below the threshold."""

    def __init__(self, assistant_confidence_threshold: float) -> None:
        self.assistant_confidence_threshold = assistant_confidence_threshold

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        """Returns whether the first row has ended; `scores`: of the last step, (rows, vocab), or of all."""
        last = scores if isinstance(scores, Tensor) else scores[-1]
        probability = last.softmax(-1)[0, input_ids[0, -1]]
        return bool(probability.item() < self.assistant_confidence_threshold)


class StoppingCriteriaList(list[Any]):
    """A list of criteria; a row ends as soon as one of them ends it."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Returns which rows have ended, (rows,)."""
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            result = torch.as_tensor(criterion(input_ids, scores, **kwargs), device=input_ids.device)
            ended = ended | (result.reshape(-1) if result.dim() > 1 else result).bool()
        return ended.as_subclass(Ended)

    @property
    def max_length(self) -> int | None:
        """The limit of the first `MaxLengthCriteria` or `MaxNewTokensCriteria`, also of those of transformers."""
        kinds = ("MaxLengthCriteria", "MaxNewTokensCriteria")
        return next((item.max_length for item in self if any(k.__name__ in kinds for k in type(item).__mro__)), None)


def validate_stopping_criteria(stopping_criteria: StoppingCriteriaList, max_length: int) -> StoppingCriteriaList:
    """Returns a copy of the criteria that has a `MaxLengthCriteria`; warns if its limit is not `max_length`."""
    criteria, limit = deepcopy(stopping_criteria), stopping_criteria.max_length
    if limit is None:
        criteria.append(MaxLengthCriteria(max_length=max_length))
    elif limit != max_length:
        warnings.warn(
            f"the stopping criteria end at {limit} tokens, and max_length is {max_length}; the criteria are used",
            stacklevel=2,
        )
    return criteria


def build_criteria(
    settings: GenerationConfig,
    max_length: int | None,
    custom: Iterable[Criterion] = (),
    tokenizer: Any = None,
    max_position_embeddings: int | None = None,
) -> StoppingCriteriaList:
    """Returns the criteria of a call of `generate()`, then the caller's, which replace those of the same class.

    Raises:
        RequestError: there are stop strings and no tokenizer.
    """
    built: list[Criterion] = []
    if max_length is not None:
        built.append(MaxLengthCriteria(max_length, max_position_embeddings))
    if (limit := settings.max_time) is not None:
        built.append(MaxTimeCriteria(limit))
    if (strings := settings.stop_strings) is not None:
        if tokenizer is None:
            raise RequestError(
                f"stop_strings is {strings!r}, which needs the model's tokenizer; pass it as generate(tokenizer=...)"
            )
        built.append(StopStringCriteria(tokenizer, strings))
    if settings.eos_token_ids:
        built.append(EosTokenCriteria(list(settings.eos_token_ids)))
    if settings.is_assistant and settings.assistant_confidence_threshold:
        built.append(ConfidenceCriteria(settings.assistant_confidence_threshold))
    return StoppingCriteriaList(merge_lists(built, custom))


def _all_rows(input_ids: Tensor, done: bool) -> Tensor:
    return torch.full((len(input_ids),), done, device=input_ids.device).as_subclass(Ended)
