"""Padding and truncation: the plan of a call, windows of long texts, and the methods `truncate_sequences` and `pad`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from puna.errors import TokenizerError, show
from puna.tokenizer.calls.batch_encoding import BatchEncoding
from puna.tokenizer.calls.encoding import Call, Encoding, Plan, SlowColumns
from puna.tokenizer.special import LOGGER, AnyTokenizer

UNLIMITED = 10**20
"""A `model_max_length` above this is a placeholder (files use 1e30 for "no limit")."""

_MAX_PADDED_LENGTH = 2**24
"""Limit on the padded length: longer than any context, and short enough that a mistake does not exhaust the memory."""

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")

DEPRECATED = ("pad_to_max_length", "truncation_strategy")
"""Arguments of early releases of transformers, which `resolve` translates."""


def notice(self: AnyTokenizer, key: str, message: str) -> None:
    """Logs a message once per tokenizer; `deprecation_warnings[key] = True` prevents it, as in transformers."""
    if not self.deprecation_warnings.get(key, False):
        LOGGER.warning(message)
    self.deprecation_warnings[key] = True


def check_integer(name: str, value: Any, lowest: int) -> None:
    """Raises TokenizerError unless an argument is an integer, `lowest` or greater, or None."""
    if value is None:
        return
    if isinstance(value, bool | type) or not hasattr(value, "__index__"):
        raise TokenizerError(f"{name} is {show(value)}; it must be an integer, {lowest} or greater")
    if value < lowest:
        raise TokenizerError(f"{name}={show(value)}; it must be at least {lowest}")


def check_ids(name: str, ids: Any) -> None:
    """Raises TokenizerError unless an argument is a list, or another sequence, of token ids."""
    if isinstance(ids, str | bytes | Mapping) or not hasattr(ids, "__len__") or not hasattr(ids, "__getitem__"):
        raise TokenizerError(f"{name} is {show(ids)}; it must be a list of token ids")


def check_pair(token_ids_0: Any, token_ids_1: Any) -> None:
    """Raises TokenizerError unless both are lists of token ids; the second may be None."""
    check_ids("token_ids_0", token_ids_0)
    if token_ids_1 is not None:
        check_ids("token_ids_1", token_ids_1)


def resolve(self: AnyTokenizer, arguments: Mapping[str, Any]) -> Plan:
    """Returns the plan that the arguments of a call specify, by the rules of transformers.

    `max_length` alone truncates, and a strategy without a length has no effect; both cases are logged.
    """
    padding, truncation, max_length = _strategies(arguments)
    multiple_of, verbose = arguments["pad_to_multiple_of"], arguments["verbose"]
    for name, lowest in (("max_length", 1), ("stride", 0), ("pad_to_multiple_of", 0)):
        check_integer(name, max_length if name == "max_length" else arguments[name], lowest)
    if max_length is not None and padding is False and truncation is None:
        truncation = True
        if verbose:
            notice(
                self,
                "Truncation-not-explicitly-activated",
                f"max_length={max_length} without truncation= truncates to this length; pass truncation=True or False",
            )
    pad = _strategy("padding", "longest" if padding is True else padding, PADDING)
    cut = _strategy("truncation", "longest_first" if truncation is True else truncation, TRUNCATION)
    if max_length is None and (pad == "max_length" or cut is not None):
        if self.model_max_length > UNLIMITED:
            if verbose:
                key = "Asking-to-pad-to-max_length" if pad == "max_length" else "Asking-to-truncate-to-max_length"
                notice(self, key, "padding or truncation to a maximum length is skipped, since no maximum is known")
            pad, cut = (None if pad == "max_length" else pad), None
        else:
            max_length = self.model_max_length
    if pad and cut and multiple_of and max_length is not None and max_length % multiple_of:
        raise TokenizerError(
            f"max_length={max_length} is not a multiple of pad_to_multiple_of={multiple_of}; change or drop one of them"
        )
    return Plan(pad, cut, max_length, multiple_of, arguments["stride"])


def _strategies(arguments: Mapping[str, Any]) -> tuple[Any, Any, int | None]:
    """Returns padding, truncation and max_length, with the deprecated arguments translated."""
    padding, truncation, max_length = (arguments[name] for name in ("padding", "truncation", "max_length"))
    if padding is False and arguments.get("pad_to_max_length"):
        padding = "longest" if max_length is None else "max_length"
        if arguments["verbose"]:
            message = "pad_to_max_length is deprecated; use padding='max_length', or padding=True for the longest text"
            warnings.warn(message, FutureWarning, stacklevel=5)
    old = arguments.get("truncation_strategy")
    if truncation is None and old not in (None, "do_not_truncate"):
        truncation = old
        if arguments["verbose"]:
            warnings.warn(f"truncation_strategy is deprecated; use truncation={old!r}", FutureWarning, stacklevel=5)
    return padding, truncation, max_length


def _strategy(name: str, value: bool | str | None, choices: tuple[str, ...]) -> str | None:
    if value is None or value is False or value == choices[-1]:
        return None
    if value not in choices:
        raise TokenizerError(f"{name}={show(value)}; choose one of {', '.join(choices)}, True or False")
    return choices[choices.index(value)]  # `value` may be a string enumeration, whose str() differs


def check_side(name: str, value: str) -> str:
    """Returns `value` if it is a side, else raises TokenizerError."""
    if value not in ("left", "right"):
        raise TokenizerError(f"{name}={show(value)}; choose 'left' or 'right'")
    return value


def windows(encoding: Encoding, plan: Plan, side: str, all_windows: bool) -> Encoding:
    """Returns the encoding with at most `plan.max_length` tokens, by the rules of the library `tokenizers`.

    Args:
        side: the end that loses tokens, "right" or "left".
        all_windows: whether `overflowing` contains the other windows, which begin `stride` tokens before the end of the
            one before. Every window has all special tokens.
    """
    excess = len(encoding) - (plan.max_length or 0)
    if plan.truncation is None or plan.max_length is None or excess <= 0:
        return encoding
    sequence_ids = encoding.columns.sequence_ids
    positions = [[i for i, sequence in enumerate(sequence_ids) if sequence == number] for number in (0, 1)]
    special = [i for i, sequence in enumerate(sequence_ids) if sequence is None]
    lengths = [len(positions[0]), len(positions[1])]
    sizes = _kept_lengths(lengths, sum(lengths) - excess, plan.truncation)
    if min(sizes) < 0:
        droppable = {"only_first": lengths[0] - 1, "only_second": lengths[1] - 1}.get(plan.truncation, sum(lengths))
        raise TokenizerError(
            f"max_length={plan.max_length}: {excess} tokens are too many, but truncation={plan.truncation!r} can drop "
            f"only {max(droppable, 0)}; raise max_length to at least {len(encoding) - max(droppable, 0)}, or choose "
            "another truncation"
        )
    parts = [list(_ranges(*pair, plan.stride, side)) for pair in zip(lengths, sizes, strict=True)]
    combinations = [(parts[0][0], parts[1][0])]
    if all_windows:
        combinations += [*itertools.product(parts[0][1:], parts[1]), *((parts[0][0], part) for part in parts[1][1:])]
    kept = [
        Encoding(encoding.columns, tuple(sorted([*special, *positions[0][a[0] : a[1]], *positions[1][b[0] : b[1]]])))
        for a, b in combinations
    ]
    return Encoding(encoding.columns, kept[0].kept, overflowing=tuple(kept[1:]))


def _ranges(count: int, size: int, stride: int, side: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of windows of `size` of `count` tokens; if `size` is 0, an empty one and one with all."""
    if size >= count or size == 0:
        yield 0, size if size < count else count
        if size < count:
            yield 0, count
        return
    if not 0 <= stride < size:
        raise TokenizerError(f"stride={stride}: must be at least 0 and less than the {size} tokens of a window")
    for index in itertools.count():
        shift = index * (size - stride)
        yield (shift, min(shift + size, count)) if side == "right" else (max(count - shift - size, 0), count - shift)
        if shift + size >= count:
            return


def _kept_lengths(lengths: Sequence[int], total: int, strategy: str, ties_to_first: bool = False) -> tuple[int, int]:
    """Returns how many tokens of each text to keep, `total` altogether; a negative number if that is impossible.

    Args:
        ties_to_first: if "longest_first" truncates both texts to an odd total, whether the first text keeps one token
            more; otherwise the longer one does (of equally long ones, the second).
    """
    first, second = lengths
    if total == 0:
        return 0, 0
    if strategy == "only_first":  # dropping the whole text is refused, as in transformers
        return (total - second if total > second else -1), second
    if strategy == "only_second":
        return first, (total - first if total > first else -1)
    shorter = min(first, second)
    if total - shorter >= shorter:
        return (first, total - first) if first == shorter else (total - second, second)
    if total < 0:
        return -1, -1
    more, less = (total + 1) // 2, total // 2
    return (more, less) if ties_to_first or first > second else (less, more)


def truncate_sequences(
    self: AnyTokenizer,
    ids: list[int],
    pair_ids: list[int] | None = None,
    num_tokens_to_remove: int = 0,
    truncation_strategy: str = "longest_first",
    stride: int = 0,
) -> tuple[list[int], list[int] | None, list[int]]:
    """Removes ids from a sequence or a pair.

    Returns:
        The sequence, its pair, and the removed ids after `stride` ids before them; for a pair and "longest_first" none.
        As in transformers, a strategy that cannot remove enough ids is logged, and removes none.
    """
    strategy = _strategy("truncation_strategy", truncation_strategy, TRUNCATION)
    check_integer("num_tokens_to_remove", num_tokens_to_remove, -(2**63))
    check_integer("stride", stride, 0)
    check_pair(ids, pair_ids)
    side, count = check_side("truncation_side", self.truncation_side), num_tokens_to_remove
    if count <= 0:
        return ids, pair_ids, []
    if strategy == "longest_first" and pair_ids is not None:
        lengths = [len(ids), len(pair_ids)]
        total = max(sum(lengths) - count, 0)
        first, second = _kept_lengths(lengths, total, strategy, ties_to_first=True)
        return _shorten(ids, lengths[0] - first, side), _shorten(pair_ids, lengths[1] - second, side), []
    is_first = strategy in ("only_first", "longest_first")
    target = ids if is_first else pair_ids
    if target is None or strategy is None:
        return ids, pair_ids, []
    if len(target) <= count:
        LOGGER.error(
            "%s tokens must be removed, but the %s sequence has only %s, so it is not truncated; raise max_length or "
            "choose another truncation strategy than %r",
            *(count, "first" if is_first else "second", len(target), strategy),
        )
        return ids, pair_ids, []
    shown = min(len(target), stride + count)
    overflow = target[:shown] if side == "left" else target[-shown:]
    kept = _shorten(target, count, side)
    return (kept, pair_ids, overflow) if is_first else (ids, kept, overflow)


def id_columns(self: AnyTokenizer, ids: list[int], pair_ids: list[int] | None, call: Call) -> SlowColumns:
    """Truncates the ids of a text or a pair, and adds special tokens."""
    plan, is_pair = call.plan, pair_ids is not None
    if call.overflow and plan.truncation == "longest_first" and is_pair:
        raise TokenizerError(
            "overflowing tokens of a pair need truncation='only_first' or 'only_second': with 'longest_first', tokens "
            "of both texts are removed"
        )
    total = len(ids) + len(pair_ids or ()) + (self.num_special_tokens_to_add(is_pair) if call.add_special_tokens else 0)
    overflow: list[int] = []
    if plan.truncation is not None and plan.max_length is not None and total > plan.max_length:
        count = total - plan.max_length
        ids, pair_ids, overflow = self.truncate_sequences(ids, pair_ids, count, plan.truncation, plan.stride)
    if call.add_special_tokens:
        first, both = (self.build_inputs_with_special_tokens(ids, pair) for pair in (None, pair_ids))
        special = self.get_special_tokens_mask(ids, pair_ids)
    else:
        first, both = ids, ids + (pair_ids or [])
        special = [0] * len(both)
    types = [0] * len(first) + [1] * (len(both) - len(first))
    return SlowColumns(both, types, special, len(ids), self._id_token, overflow, total)


def _shorten(ids: list[int], count: int, side: str) -> list[int]:
    return ids[count:] if side == "left" else ids[: len(ids) - count]


def pad_encodings(self: AnyTokenizer, encodings: list[Encoding], plan: Plan, side: str) -> list[Encoding]:
    """Pads encodings to the length of the plan."""
    length = padded_length([len(encoding) for encoding in encodings], plan)
    if length is None:
        return encodings
    index, token = _padding_token(self)
    return [encoding.padded(length, side, index, token, self.pad_token_type_id) for encoding in encodings]


def _padding_token(self: AnyTokenizer) -> tuple[int, str]:
    token, index = self.pad_token, self.pad_token_id
    if token is None or index is None:
        raise TokenizerError(
            "padding needs a padding token and this tokenizer has none; set pad_token to an existing token "
            "(tokenizer.pad_token = tokenizer.eos_token) or add one with add_special_tokens({'pad_token': '<pad>'})"
        )
    return index, token


def padded_length(lengths: list[int], plan: Plan) -> int | None:
    """Returns the length to pad sequences of these lengths to, or None for no padding."""
    if plan.padding is None or not lengths:
        return None
    length = max(lengths)
    if plan.padding == "max_length":
        assert plan.max_length is not None
        length = plan.max_length
    if plan.multiple_of:
        length = -(-length // plan.multiple_of) * plan.multiple_of
    if length > _MAX_PADDED_LENGTH:
        raise TokenizerError(f"cannot pad to {length} tokens: the limit is {_MAX_PADDED_LENGTH}; lower max_length")
    return length


def pad(
    self: AnyTokenizer,
    encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    padding: bool | str = True,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    return_attention_mask: bool | None = None,
    return_tensors: str | None = None,
    verbose: bool = True,
    padding_side: str | None = None,
) -> BatchEncoding:
    """Pads one encoded input, a batch, or a list of encoded inputs (as the collate function of a data loader).

    Pads the first column of `model_input_names` (usually `input_ids`), `attention_mask` (with 0), `token_type_ids`
    (`pad_token_type_id`) and `special_tokens_mask` (1); other columns do not change. Columns of tensors are returned
    as tensors.

    Raises:
        TokenizerError: there is no padding token, or a column that should become a tensor has rows of several lengths.
    """
    side = check_side("padding_side", self.padding_side if padding_side is None else padding_side)
    name = self.model_input_names[0]
    columns, single, kind = _as_columns(encoded_inputs, name)
    if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
        columns.setdefault("attention_mask", [[1] * len(ids) for ids in columns[name]])
    arguments = {"padding": padding, "truncation": False, "max_length": max_length, "verbose": verbose, "stride": 0}
    plan = resolve(self, arguments | {"pad_to_multiple_of": pad_to_multiple_of})
    length = padded_length([len(ids) for ids in columns[name]], plan)
    tensors = return_tensors or kind
    if length is not None:
        fill = {"attention_mask": 0, "token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1}
        _pad_columns(columns, length, side, {**fill, name: _padding_token(self)[0]}, tensors is not None)
    data: dict[str, Any] = {name: column[0] for name, column in columns.items()} if single else columns
    return BatchEncoding(data, tensor_type=tensors)


def _as_columns(
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]], name: str
) -> tuple[dict[str, list[Any]], bool, str | None]:
    """Returns the input of `pad` as columns of rows, whether it was one sequence, and the type of its tensors."""
    raw: dict[str, Any]
    is_list = isinstance(inputs, list | tuple) and all(isinstance(item, Mapping) for item in inputs)
    if not is_list and not isinstance(inputs, Mapping):
        raise TokenizerError(f"encoded_inputs is {show(inputs)}; it must be the result of a call, or a list of results")
    if isinstance(inputs, Mapping):
        raw = dict(inputs)
    else:
        raw = {key: [item[key] for item in inputs] for key in (inputs[0] if len(inputs) else ())}
    if name not in raw:
        raise TokenizerError(f"pad needs {name}; got the columns {sorted(raw)}")
    first = next(iter(raw[name]), None) if isinstance(raw[name], (list, tuple)) else raw[name]
    kind = None if not hasattr(first, "shape") else "pt" if hasattr(first, "to") else "np"
    columns = {key: _as_list(value) for key, value in raw.items()}
    ids = columns[name]
    if isinstance(inputs, Mapping) and (not ids or not isinstance(ids[0], (list, tuple))):
        return {key: [value] for key, value in columns.items()}, True, kind
    ragged = [key for key, value in columns.items() if len(value) != len(ids)]
    if ragged:
        raise TokenizerError(f"{ragged[0]} has {len(columns[ragged[0]])} rows, but {name} has {len(ids)}")
    return columns, False, kind


def _as_list(value: Any) -> Any:
    """Returns values with arrays and tensors, also those in a list, converted to lists and numbers."""
    if isinstance(value, (list, tuple)):
        return [_as_list(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _pad_columns(columns: dict[str, list[Any]], length: int, side: str, fill: dict[str, int], as_tensors: bool) -> None:
    """Pads the rows of the columns in place.

    Raises:
        TokenizerError: a column that should become a tensor is not padded, and its rows differ in length.
    """
    for name in fill.keys() & columns.keys():
        columns[name] = [_pad_row(row, length, fill[name], side) for row in columns[name]]
    ragged = sorted(name for name in columns.keys() - fill.keys() if _is_ragged(columns[name]))
    if as_tensors and ragged:
        *others, first = fill
        raise TokenizerError(
            f"{ragged[0]}: pad fills only {', '.join([first, *others])}, and the rows of this column differ in length; "
            "pad them yourself, or leave the column out"
        )


def _pad_row(row: list[int], length: int, value: int, side: str) -> list[int]:
    padding = [value] * (length - len(row))
    return padding + row if side == "left" else row + padding


def _is_ragged(rows: list[Any]) -> bool:
    return len({len(row) for row in rows if isinstance(row, (list, tuple))}) > 1
