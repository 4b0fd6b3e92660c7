"""Truncation and padding: what was asked for, resolved, and done. Both tokenizers share it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from puna.errors import TokenizerError
from puna.tokenizer.encoding import Encoding

UNLIMITED = 10**20
"""A `model_max_length` above this is a placeholder (files say 1e30 for "none"), not a limit."""

_LONGEST_PADDED = 2**24
"""Tokens a row may be padded to: beyond any context, and small enough that a slip does not fill the memory."""

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass(frozen=True)
class Plan:
    """How to cut and pad: strategies, None for neither, and the lengths they aim at."""

    padding: str | None = None
    truncation: str | None = None
    max_length: int | None = None
    multiple_of: int | None = None


def resolve(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    multiple_of: int | None,
    model_max_length: int,
) -> Plan:
    """Reads the Hugging Face spellings of padding and truncation.

    As there, a bare `max_length` truncates, and a strategy without any known length does nothing; both warn.
    """
    if max_length is not None and max_length < 1:
        raise TokenizerError(f"max_length={max_length}; it must be at least 1")
    if max_length is not None and padding is False and truncation is None:
        warnings.warn(
            f"max_length={max_length} without truncation=: truncating to it; say truncation=True or truncation=False",
            stacklevel=4,
        )
        truncation = True
    pad = _strategy("padding", "longest" if padding is True else padding, PADDING)
    cut = _strategy("truncation", "longest_first" if truncation is True else truncation, TRUNCATION)
    if max_length is None and (pad == "max_length" or cut is not None):
        if model_max_length > UNLIMITED:
            warnings.warn(
                "truncation or padding to a maximum length was asked for, but none is known: nothing is cut or padded "
                "to it; pass max_length= or set model_max_length",
                stacklevel=4,
            )
            pad, cut = (None if pad == "max_length" else pad), None
        else:
            max_length = model_max_length
    if pad and cut and multiple_of and max_length is not None and max_length % multiple_of:
        raise TokenizerError(
            f"max_length={max_length} is no multiple of pad_to_multiple_of={multiple_of}; make it one, or drop either"
        )
    return Plan(pad, cut, max_length, multiple_of)


def _strategy(name: str, value: bool | str | None, known: tuple[str, ...]) -> str | None:
    if value is None or value is False or value == known[-1]:
        return None
    if value not in known:
        raise TokenizerError(f"{name}={value!r}; choose one of {', '.join(known)}, True or False")
    return known[known.index(value)]  # for an enumeration that is a string, whose `str` is another


def check_side(name: str, value: str) -> str:
    """Gives `value` back if it is a side."""
    if value not in ("left", "right"):
        raise TokenizerError(f"{name}={value!r}; choose 'left' or 'right'")
    return value


def truncate(encoding: Encoding, plan: Plan, side: str, first_keeps_more: bool | None) -> Encoding:
    """Drops tokens of the texts, never special ones, so that the whole has at most `plan.max_length`.

    Args:
        side: the end that loses tokens, "right" or "left".
        first_keeps_more: where longest_first must leave two texts one apart, whether the first keeps the odd token;
            None: the longer one does (the rule of `tokenizers`).
    """
    excess = len(encoding) - (plan.max_length or 0)
    if plan.truncation is None or plan.max_length is None or excess <= 0:
        return encoding
    sequence_ids = encoding.columns.sequence_ids
    places = [[i for i, s in enumerate(sequence_ids) if s == number] for number in (0, 1)]
    lengths = [len(places[0]), len(places[1])]
    keep = _shares(lengths, sum(lengths) - excess, plan.truncation, first_keeps_more)
    if min(keep) < 0:
        what = {"only_first": lengths[0] - 1, "only_second": lengths[1] - 1}.get(plan.truncation, sum(lengths))
        raise TokenizerError(
            f"max_length={plan.max_length}: {excess} tokens are to go, but truncation={plan.truncation!r} can take "
            f"{what}; raise max_length to {len(encoding) - what} at least, or choose another truncation"
        )
    dropped: set[int] = set()
    for place, count in zip(places, keep, strict=True):
        dropped.update(place[count:] if side == "right" else place[: len(place) - count])
    return Encoding(encoding.columns, tuple(i for i in range(len(sequence_ids)) if i not in dropped))


def _shares(lengths: list[int], total: int, strategy: str, first_keeps_more: bool | None) -> tuple[int, int]:
    """How many tokens of either text to keep, `total` in all; negative where it cannot be done."""
    first, second = lengths
    if strategy == "only_first":  # to nothing at all is refused, as in transformers
        return total - second or -1, second
    if strategy == "only_second":
        return first, total - first or -1
    shorter = min(first, second)
    if total - shorter >= shorter:
        return (first, total - first) if first == shorter else (total - second, second)
    if total < 0:
        return -1, -1
    odd_to_first = first > second if first_keeps_more is None else first_keeps_more
    more, less = (total + 1) // 2, total // 2
    return (more, less) if odd_to_first else (less, more)


def padded_length(lengths: list[int], plan: Plan) -> int | None:
    """The length to pad sequences of these lengths to, or None for no padding."""
    if plan.padding is None or not lengths:
        return None
    length = max(lengths)
    if plan.padding == "max_length":
        assert plan.max_length is not None
        length = plan.max_length
    if plan.multiple_of:
        length = -(-length // plan.multiple_of) * plan.multiple_of
    if length > _LONGEST_PADDED:
        raise TokenizerError(f"padding to {length} tokens; the limit is {_LONGEST_PADDED}; lower max_length")
    return length
