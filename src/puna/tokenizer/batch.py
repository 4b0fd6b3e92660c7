"""Calling a tokenizer: `__call__`, `encode` and `pad`, which add padding, truncation and tensors to `_encode`.

The functions `call`, `encode` and `pad` are methods of `TokenizerBase`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.errors import TokenizerError, show
from puna.tokenizer.arguments import split_batch
from puna.tokenizer.encoding import BatchEncoding, Encoding, Input, Text
from puna.tokenizer.special import AnyTokenizer

UNLIMITED = 10**20
"""A `model_max_length` above this is a placeholder (files use 1e30 for "no limit")."""

_MAX_PADDED_LENGTH = 2**24
"""Limit on the padded length: longer than any context, and short enough that a mistake does not exhaust the memory."""

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")

_COLUMNS: dict[str, Callable[[Encoding], Any]] = {
    "input_ids": lambda encoding: encoding.ids,
    "token_type_ids": lambda encoding: encoding.type_ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "special_tokens_mask": lambda encoding: encoding.special_tokens_mask,
    "offset_mapping": lambda encoding: encoding.offsets,
    "length": len,
}
"""The columns that a call can return, in this order."""


@dataclass(frozen=True)
class Plan:
    """The strategies for padding and truncation (None: not padded, not truncated), and the lengths."""

    padding: str | None = None
    truncation: str | None = None
    max_length: int | None = None
    multiple_of: int | None = None


def call(
    self: AnyTokenizer,
    text: Text | Sequence[Text] | None = None,
    text_pair: Text | Sequence[Text] | None = None,
    text_target: Text | Sequence[Text] | None = None,
    text_pair_target: Text | Sequence[Text] | None = None,
    add_special_tokens: bool = True,
    padding: bool | str = False,
    truncation: bool | str | None = None,
    max_length: int | None = None,
    is_split_into_words: bool = False,
    pad_to_multiple_of: int | None = None,
    return_tensors: str | None = None,
    return_token_type_ids: bool | None = None,
    return_attention_mask: bool | None = None,
    return_special_tokens_mask: bool = False,
    return_offsets_mapping: bool = False,
    return_length: bool = False,
    split_special_tokens: bool | None = None,
    padding_side: str | None = None,
) -> BatchEncoding:
    """Encodes a text, a pair of texts, or batches of either.

    Args:
        text, text_pair: a string, or a list of strings for a batch; with `is_split_into_words`, lists of words.
            Without `is_split_into_words`, a list of two-tuples is a batch of pairs.
        text_target, text_pair_target: as `text` and `text_pair`; if `text` is set too, their ids become `labels`.
        add_special_tokens: whether to add BOS and EOS, as the settings of this tokenizer specify.
        padding: True or "longest", "max_length", or False.
        truncation: True or "longest_first", "only_first", "only_second", or False.
        max_length: the length to truncate or pad to; `model_max_length` by default.
        pad_to_multiple_of: rounds the padded length up.
        return_tensors: "np", "pt", or None for lists.
        return_offsets_mapping: also return the character range of each token (`LlamaTokenizerFast` only).
        split_special_tokens: whether special tokens written in the text are encoded as text.
        padding_side: "left" or "right"; by default, the tokenizer's setting.

    Raises:
        TokenizerError: an input is not a text, there is no padding token, or truncation cannot reach the length.
    """
    plan = resolve(padding, truncation, max_length, pad_to_multiple_of, self.model_max_length)
    names = self.model_input_names
    flags = {
        "input_ids": True,
        "token_type_ids": "token_type_ids" in names if return_token_type_ids is None else return_token_type_ids,
        "attention_mask": "attention_mask" in names if return_attention_mask is None else return_attention_mask,
        "special_tokens_mask": return_special_tokens_mask,
        "offset_mapping": return_offsets_mapping,
        "length": return_length,
    }
    side = _side(self, padding_side)
    split = self.split_special_tokens if split_special_tokens is None else split_special_tokens

    def encode_inputs(first: Text | Sequence[Text], second: Text | Sequence[Text] | None) -> BatchEncoding:
        texts, pairs, batched = split_batch(first, second, is_split_into_words)
        inputs = [Input(t, p, add_special_tokens, split) for t, p in zip(texts, pairs, strict=True)]
        encodings = _finish(self, self._encode(inputs), plan, side)
        columns = {name: [value(e) for e in encodings] for name, value in _COLUMNS.items() if flags[name]}
        data: dict[str, Any] = columns if batched else {name: column[0] for name, column in columns.items()}
        return BatchEncoding(data, encodings if self.is_fast else None, return_tensors, prepend_batch_axis=not batched)

    if text is None:
        if text_target is None:
            raise TokenizerError("nothing to encode: give text= or text_target=")
        return encode_inputs(text_target, text_pair_target)
    result = encode_inputs(text, text_pair)
    if text_target is not None:
        result["labels"] = encode_inputs(text_target, text_pair_target)["input_ids"]
    return result


def encode(
    self: AnyTokenizer,
    text: Text,
    text_pair: Text | None = None,
    add_special_tokens: bool = True,
    padding: bool | str = False,
    truncation: bool | str | None = None,
    max_length: int | None = None,
    return_tensors: str | None = None,
    split_special_tokens: bool | None = None,
    is_split_into_words: bool = False,
    padding_side: str | None = None,
) -> Any:
    """Returns the ids of one text or pair: a list, or with `return_tensors` a tensor of shape (1, tokens)."""
    if not isinstance(text, str) and not is_split_into_words:
        raise TokenizerError(f"encode takes one string, not {type(text).__name__}; call the tokenizer for a batch")
    return self(
        text,
        text_pair,
        add_special_tokens=add_special_tokens,
        padding=padding,
        truncation=truncation,
        max_length=max_length,
        return_tensors=return_tensors,
        split_special_tokens=split_special_tokens,
        is_split_into_words=is_split_into_words,
        padding_side=padding_side,
    )["input_ids"]


def pad(
    self: AnyTokenizer,
    encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    padding: bool | str = True,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    return_attention_mask: bool | None = None,
    return_tensors: str | None = None,
    padding_side: str | None = None,
) -> BatchEncoding:
    """Pads one encoded input, a batch, or a list of encoded inputs (as the collate function of a data loader).

    Pads the columns `input_ids`, `attention_mask` (with 0), `token_type_ids` (0) and `special_tokens_mask` (1); other
    columns do not change.

    Raises:
        TokenizerError: there is no padding token, or a column that should become a tensor has rows of several lengths.
    """
    side = _side(self, padding_side)
    columns, single = _as_columns(encoded_inputs)
    if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
        columns.setdefault("attention_mask", [[1] * len(ids) for ids in columns["input_ids"]])
    plan = resolve(padding, False, max_length, pad_to_multiple_of, self.model_max_length)
    length = padded_length([len(ids) for ids in columns["input_ids"]], plan)
    if length is not None:
        _pad_columns(columns, length, side, _padding_token(self)[0], return_tensors is not None)
    data: dict[str, Any] = {name: column[0] for name, column in columns.items()} if single else columns
    return BatchEncoding(data, tensor_type=return_tensors)


def _side(self: AnyTokenizer, padding_side: str | None) -> str:
    return check_side("padding_side", self.padding_side if padding_side is None else padding_side)


def _finish(self: AnyTokenizer, encodings: list[Encoding], plan: Plan, side: str) -> list[Encoding]:
    """Truncates, then pads."""
    kept = [truncate(encoding, plan, self.truncation_side, self._first_keeps_more) for encoding in encodings]
    length = padded_length([len(encoding) for encoding in kept], plan)
    if length is None:
        return kept
    pad_id, pad_token = _padding_token(self)
    return [e.padded(max(0, length - len(e)), side, pad_id, pad_token) for e in kept]


def _padding_token(self: AnyTokenizer) -> tuple[int, str]:
    token, index = self.pad_token, self.pad_token_id
    if token is None or index is None:
        raise TokenizerError(
            "padding needs a padding token and this tokenizer has none; set pad_token to an existing token "
            "(tokenizer.pad_token = tokenizer.eos_token) or add one with add_special_tokens({'pad_token': '<pad>'})"
        )
    return index, token


def resolve(
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    multiple_of: int | None,
    model_max_length: int,
) -> Plan:
    """Returns the plan that the padding and truncation arguments of transformers specify.

    As in transformers, `max_length` alone truncates, and a strategy without a length has no effect. Both cases warn.
    """
    if max_length is not None and max_length < 1:
        raise TokenizerError(f"max_length={max_length}; it must be at least 1")
    if max_length is not None and padding is False and truncation is None:
        warnings.warn(
            f"max_length={max_length} without truncation= truncates to this length; pass truncation=True or False",
            stacklevel=4,
        )
        truncation = True
    pad = _strategy("padding", "longest" if padding is True else padding, PADDING)
    truncation_strategy = _strategy("truncation", "longest_first" if truncation is True else truncation, TRUNCATION)
    if max_length is None and (pad == "max_length" or truncation_strategy is not None):
        if model_max_length > UNLIMITED:
            warnings.warn(
                "truncation or padding to a maximum length was requested, but skipped, since no maximum is known; "
                "pass max_length= or set model_max_length",
                stacklevel=4,
            )
            pad, truncation_strategy = (None if pad == "max_length" else pad), None
        else:
            max_length = model_max_length
    if pad and truncation_strategy and multiple_of and max_length is not None and max_length % multiple_of:
        raise TokenizerError(
            f"max_length={max_length} is not a multiple of pad_to_multiple_of={multiple_of}; change or drop one of them"
        )
    return Plan(pad, truncation_strategy, max_length, multiple_of)


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


def truncate(encoding: Encoding, plan: Plan, side: str, first_keeps_more: bool | None) -> Encoding:
    """Returns the encoding with at most `plan.max_length` tokens; special tokens are not dropped.

    Args:
        side: the end that loses tokens, "right" or "left".
        first_keeps_more: which text keeps one token more if longest_first leaves an odd number of tokens to a pair:
            True the first, False the second, None the longer (the rule of `tokenizers`).
    """
    excess = len(encoding) - (plan.max_length or 0)
    if plan.truncation is None or plan.max_length is None or excess <= 0:
        return encoding
    sequence_ids = encoding.columns.sequence_ids
    positions = [[i for i, sequence in enumerate(sequence_ids) if sequence == number] for number in (0, 1)]
    lengths = [len(positions[0]), len(positions[1])]
    kept = _kept_lengths(lengths, sum(lengths) - excess, plan.truncation, first_keeps_more)
    if min(kept) < 0:
        droppable = {"only_first": lengths[0] - 1, "only_second": lengths[1] - 1}.get(plan.truncation, sum(lengths))
        raise TokenizerError(
            f"max_length={plan.max_length}: {excess} tokens are too many, but truncation={plan.truncation!r} can drop "
            f"only {droppable}; raise max_length to at least {len(encoding) - droppable}, or choose another truncation"
        )
    dropped: set[int] = set()
    for indexes, count in zip(positions, kept, strict=True):
        dropped.update(indexes[count:] if side == "right" else indexes[: len(indexes) - count])
    return Encoding(encoding.columns, tuple(i for i in range(len(sequence_ids)) if i not in dropped))


def _kept_lengths(lengths: list[int], total: int, strategy: str, first_keeps_more: bool | None) -> tuple[int, int]:
    """Returns how many tokens of each text to keep, in sum `total`; a negative number if that is impossible."""
    first, second = lengths
    if strategy == "only_first":  # dropping the whole text is refused, as in transformers
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


def _as_columns(inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Any]], bool]:
    """Returns the input of `pad` as columns with a row per sequence, and whether it was a single sequence."""
    if not isinstance(inputs, Mapping):
        rows = [{name: _as_list(value) for name, value in item.items()} for item in inputs]
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    else:
        columns = {name: _as_list(value) for name, value in inputs.items()}
    if "input_ids" not in columns:
        raise TokenizerError(f"pad needs input_ids; got the columns {sorted(columns)}")
    ids = columns["input_ids"]
    if isinstance(inputs, Mapping) and (not ids or not isinstance(ids[0], (list, tuple))):
        return {name: [value] for name, value in columns.items()}, True
    return columns, False


def _as_list(value: Any) -> Any:
    """Returns lists and numbers unchanged, arrays and tensors converted by their `tolist`."""
    return value if isinstance(value, (list, tuple, int, float)) else value.tolist()


def _pad_columns(columns: dict[str, list[Any]], length: int, side: str, pad_id: int, as_tensors: bool) -> None:
    """Pads the rows of the columns in place.

    Raises:
        TokenizerError: a column that should become a tensor is not padded, and its rows differ in length.
    """
    fill = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
    for name in fill.keys() & columns.keys():
        columns[name] = [_pad_row(row, length, fill[name], side) for row in columns[name]]
    ragged = sorted(name for name in columns.keys() - fill.keys() if _is_ragged(columns[name]))
    if as_tensors and ragged:
        raise TokenizerError(
            f"{ragged[0]}: pad fills only {', '.join(fill)}, and the rows of this column differ in length; pad them "
            "yourself, or leave the column out"
        )


def _pad_row(row: list[int], length: int, value: int, side: str) -> list[int]:
    padding = [value] * (length - len(row))
    return padding + row if side == "left" else row + padding


def _is_ragged(rows: list[Any]) -> bool:
    return len({len(row) for row in rows if isinstance(row, (list, tuple))}) > 1
