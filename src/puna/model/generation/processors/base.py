"""The base classes of logits processors, and the list that applies them in order.

A processor is a function `(input_ids (rows, tokens), scores (rows, vocabulary)) -> scores` that does not modify its
arguments. The classes of this package only hold arguments; their names and signatures are those of transformers. The
functions next to them do the arithmetic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from puna.errors import RequestError, show

Processor = Callable[..., Tensor]
"""A `LogitsProcessor`, or any function with the same arguments. transformers' own processors are accepted, too."""

EndTokens = int | list[int] | Tensor
"""The id or ids of end tokens, as the constructors accept them."""


class LogitsProcessor:
    """Base class of objects that change the scores of the next token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the changed scores.

        Args:
            input_ids: (rows, tokens): the tokens of each row so far.
            scores: (rows, vocabulary): logits, or log-probabilities in a beam search.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not define __call__; only subclasses that define it can be called"
        )


class LogitsWarper(LogitsProcessor):
    """Base class of processors that are used only for sampling. transformers 5 has no such distinction."""


class LogitsProcessorList(list[Any]):
    """Processors that are applied in order."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Returns the scores after all processors.

        Args:
            kwargs: further arguments for the processors whose signature has them, such as `current_tokens`.

        Raises:
            RequestError: a processor needs an argument that is missing.
        """
        for processor in self:
            scores = processor(input_ids, scores, **_further_arguments(processor, kwargs))
        return scores


@lru_cache(maxsize=256)
def _further_parameters(kind: type[Any]) -> tuple[inspect.Parameter, ...]:
    """Returns the parameters of a class's `__call__` after self, the ids and the scores."""
    return tuple(inspect.signature(kind.__call__).parameters.values())[3:]


def _further_arguments(processor: Processor, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments that the processor accepts in addition to the ids and the scores."""
    kind: Any = type(processor)
    parameters = _further_parameters(kind)
    if not parameters:
        return {}
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise RequestError(
            f"{type(processor).__name__} needs the arguments {', '.join(missing)}, which were not passed to the logits "
            "processors; pass them to LogitsProcessorList, or use the processor with the strategy that passes them"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    return {p.name: arguments[p.name] for p in named if p.name in arguments}


def forbid(scores: Tensor, tokens: Tensor) -> Tensor:
    """Sets the scores of `tokens`, (n,), to minus infinity; ids outside the vocabulary have no effect."""
    return scores.index_fill(-1, _in_vocabulary(scores, tokens), float("-inf"))


def force(scores: Tensor, tokens: Tensor) -> Tensor:
    """Sets the scores of `tokens`, (n,), to 0 and all others to minus infinity."""
    return torch.full_like(scores, float("-inf")).index_fill(-1, _in_vocabulary(scores, tokens), 0.0)


def _in_vocabulary(scores: Tensor, tokens: Tensor) -> Tensor:
    """Returns the tokens, (n,), for which there are scores."""
    tokens = tokens[(tokens >= 0) & (tokens < scores.shape[-1])]
    return tokens.to(scores.device)


def end_tokens(eos_token_id: EndTokens, device: Any = "cpu") -> Tensor:
    """Returns the ids of end tokens as a tensor, (n,).

    Raises:
        RequestError: an id is negative or not an integer.
    """
    ids = token_tensor(eos_token_id, device)
    if ids.is_floating_point() or (ids < 0).any():
        raise RequestError(f"eos_token_id is {eos_token_id}; it must be an integer or a list of integers, 0 or greater")
    return ids


def token_tensor(tokens: EndTokens | Iterable[int], device: Any = "cpu") -> Tensor:
    """Returns one or several ids as a tensor, (n,).

    Raises:
        RequestError: the ids are not integers.
    """
    if isinstance(tokens, Tensor):
        return tokens.reshape(-1)
    ids: list[Any] = [tokens] if not isinstance(tokens, Iterable) or isinstance(tokens, str | bytes) else list(tokens)
    if wrong := [item for item in ids if isinstance(item, bool) or not isinstance(item, Integral)]:
        raise RequestError(f"{show(wrong[0])} is not a token id; pass an integer or a list of integers")
    if ids and max(map(abs, ids)) >= 2**63:
        raise RequestError(f"{show(max(ids))} is not a token id; it must be below 2^63")
    return torch.tensor(ids, device=as_device(device), dtype=torch.long)


def as_device(device: Any) -> torch.device:
    """Returns the argument `device` of a processor.

    Raises:
        RequestError: this machine has no such device.
    """
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError) as exc:
        raise RequestError(
            f"device is {show(device)}; pass the device of the model, such as 'cpu' or 'cuda:0'"
        ) from exc


def check_integer(name: str, value: Any, lowest: int) -> None:
    """Raises RequestError unless `value` is an integer that is at least `lowest`."""
    if not isinstance(value, int) or value < lowest:
        raise RequestError(f"{name} is {show(value)}; it must be an integer, {lowest} or greater")


def number(name: str, value: Any, condition: str, low: float, high: float, ends: str = "[]") -> float:
    """Returns a number as a float.

    Args:
        condition: the words that describe the range, for the message.
        low, high: the limits; a bracket in `ends` includes a limit, a parenthesis excludes it.

    Raises:
        RequestError: `value` is not a number in this range.
    """
    valid = not isinstance(value, bool) and isinstance(value, Real) and low <= float(value) <= high
    if not valid or (ends[0] == "(" and value == low) or (ends[1] == ")" and value == high):
        raise RequestError(f"{name} is {show(value)}; it must be a number {condition}")
    return float(value)


def check_positive_float(name: str, value: Any, hint: str = "") -> None:
    """Raises RequestError unless `value` is a float greater than 0."""
    if not isinstance(value, float) or not value > 0:
        raise RequestError(f"{name} is {show(value)}; it must be a float greater than 0{hint}")
