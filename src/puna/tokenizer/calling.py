"""The call interface of the Hugging Face tokenizers: `tokenizer(...)`, `encode`, `pad` and their options."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puna.errors import TokenizerError
from puna.tokenizer.encoding import BatchEncoding, Encoding
from puna.tokenizer.prepare import Plan, check_side, padded_length, resolve, truncate
from puna.tokenizer.special import SpecialTokens

Text = str | Sequence[str]
"""One text; a sequence is a text already split into words."""


@dataclass(frozen=True)
class Input:
    """What goes to the engine: a text or a pair, and how to read it."""

    text: Text
    pair: Text | None
    add_special_tokens: bool
    split_special_tokens: bool


@dataclass(frozen=True)
class Output:
    """Which columns a call returns, and as what."""

    tensors: str | None = None
    attention_mask: bool = True
    token_type_ids: bool = False
    special_tokens_mask: bool = False
    offsets_mapping: bool = False
    length: bool = False


class CallableTokenizer(SpecialTokens):
    """Encoding calls over a subclass that encodes one input at a time or many."""

    padding_side: str
    truncation_side: str
    model_max_length: int
    model_input_names: list[str]
    split_special_tokens: bool
    is_fast: bool
    _first_keeps_more: bool | None
    """See `prepare.truncate`."""

    @abstractmethod
    def _encode_many(self, inputs: Sequence[Input]) -> list[Encoding]:
        """Encodes inputs, neither cut nor padded."""

    @abstractmethod
    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens `add_special_tokens` puts around a text or pair."""

    def __call__(
        self,
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
                Without it, a list of two-tuples is a batch of pairs.
            text_target, text_pair_target: likewise; their ids become `labels`.
            add_special_tokens: whether BOS and EOS are added as this tokenizer is set to.
            padding: True or "longest", "max_length", or False.
            truncation: True or "longest_first", "only_first", "only_second", or False.
            max_length: the length to cut or pad to; `model_max_length` by default.
            pad_to_multiple_of: rounds the padded length up.
            return_tensors: "np", "pt", or None for lists.
            return_offsets_mapping: character spans, on the fast tokenizer only.
            split_special_tokens: whether special tokens written in the text are encoded as text.
            padding_side: "left" or "right", the tokenizer's own by default.

        Raises:
            TokenizerError: the text is no text, padding has no token, or truncation cannot reach the length.
        """
        plan = resolve(padding, truncation, max_length, pad_to_multiple_of, self.model_max_length)
        names = self.model_input_names
        output = Output(
            return_tensors,
            "attention_mask" in names if return_attention_mask is None else return_attention_mask,
            "token_type_ids" in names if return_token_type_ids is None else return_token_type_ids,
            return_special_tokens_mask,
            return_offsets_mapping,
            return_length,
        )
        side = self._side(padding_side)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens

        def one(first: Text | Sequence[Text], second: Text | Sequence[Text] | None) -> BatchEncoding:
            texts, pairs, batched = _batch(first, second, is_split_into_words)
            inputs = [Input(t, p, add_special_tokens, split) for t, p in zip(texts, pairs, strict=True)]
            return self._collate(self._finish(self._encode_many(inputs), plan, side), output, batched)

        if text is None:
            if text_target is None:
                raise TokenizerError("nothing to encode: give text= or text_target=")
            return one(text_target, text_pair_target)
        encoded = one(text, text_pair)
        if text_target is not None:
            encoded["labels"] = one(text_target, text_pair_target)["input_ids"]
        return encoded

    def encode(
        self,
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
        """The ids of one text or pair: a list of int, or a tensor of shape (1, tokens) with `return_tensors`."""
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

    encode_plus = __call__
    batch_encode_plus = __call__

    def _side(self, given: str | None) -> str:
        return check_side("padding_side", self.padding_side if given is None else given)

    def _finish(self, encodings: list[Encoding], plan: Plan, side: str) -> list[Encoding]:
        """Cuts, then pads."""
        cut = [truncate(encoding, plan, self.truncation_side, self._first_keeps_more) for encoding in encodings]
        length = padded_length([len(encoding) for encoding in cut], plan)
        if length is None:
            return cut
        pad_id, pad_token = self._padding_token()
        return [e.padded(max(0, length - len(e)), side, pad_id, pad_token) for e in cut]

    def _padding_token(self) -> tuple[int, str]:
        token, index = self.pad_token, self.pad_token_id
        if token is None or index is None:
            raise TokenizerError(
                "padding needs a padding token and this tokenizer has none; set pad_token to an existing token "
                "(tokenizer.pad_token = tokenizer.eos_token) or add one with add_special_tokens({'pad_token': '<pad>'})"
            )
        return index, token

    def _collate(self, encodings: list[Encoding], output: Output, batched: bool) -> BatchEncoding:
        columns: dict[str, list[Any]] = {"input_ids": [e.ids for e in encodings]}
        if output.token_type_ids:
            columns["token_type_ids"] = [e.type_ids for e in encodings]
        if output.attention_mask:
            columns["attention_mask"] = [e.attention_mask for e in encodings]
        if output.special_tokens_mask:
            columns["special_tokens_mask"] = [e.special_tokens_mask for e in encodings]
        if output.offsets_mapping:
            columns["offset_mapping"] = [e.offsets for e in encodings]
        if output.length:
            columns["length"] = [len(e) for e in encodings]
        data: dict[str, Any] = columns if batched else {name: column[0] for name, column in columns.items()}
        return BatchEncoding(data, encodings if self.is_fast else None, output.tensors, prepend_batch_axis=not batched)

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        padding_side: str | None = None,
    ) -> BatchEncoding:
        """Pads encoded inputs: one, a batch, or a list of single ones (a data loader's collate function).

        The columns padded are `input_ids`, `attention_mask` (0), `token_type_ids` (0) and `special_tokens_mask` (1);
        others stay as they are.

        Raises:
            TokenizerError: there is no padding token, or a column that is not padded cannot be a tensor.
        """
        side = self._side(padding_side)
        columns, single = _as_columns(encoded_inputs)
        if return_attention_mask or (return_attention_mask is None and "attention_mask" in self.model_input_names):
            columns.setdefault("attention_mask", [[1] * len(ids) for ids in columns["input_ids"]])
        plan = resolve(padding, False, max_length, pad_to_multiple_of, self.model_max_length)
        length = padded_length([len(ids) for ids in columns["input_ids"]], plan)
        if length is not None:
            fill = {"input_ids": self._padding_token()[0], "attention_mask": 0, "token_type_ids": 0}
            fill["special_tokens_mask"] = 1
            for name in fill.keys() & columns.keys():
                columns[name] = [_pad_row(row, length, fill[name], side) for row in columns[name]]
            ragged = sorted(name for name in columns.keys() - fill.keys() if _is_ragged(columns[name]))
            if return_tensors is not None and ragged:
                raise TokenizerError(
                    f"{ragged[0]}: pad fills up only {', '.join(fill)}, and these rows differ in length; pad them "
                    "yourself, or leave the column out"
                )
        data: dict[str, Any] = {name: column[0] for name, column in columns.items()} if single else columns
        return BatchEncoding(data, tensor_type=return_tensors)


def _pad_row(row: list[int], length: int, value: int, side: str) -> list[int]:
    padding = [value] * (length - len(row))
    return padding + row if side == "left" else row + padding


def _is_ragged(rows: list[Any]) -> bool:
    return len({len(row) for row in rows if isinstance(row, (list, tuple))}) > 1


def _batch(
    text: Text | Sequence[Text], pair: Text | Sequence[Text] | None, words: bool
) -> tuple[list[Text], list[Text | None], bool]:
    """Tells one input from a batch: the texts, their pairs, and whether it was a batch."""
    if isinstance(text, str) or (words and _is_words(text)):
        return [_checked(text, words)], [None if pair is None else _checked(pair, words)], False
    if not isinstance(text, (list, tuple)):
        raise TokenizerError(f"a {type(text).__name__} is no text; pass a string or a list of strings")
    if pair is None and not words and text and all(isinstance(item, tuple) and len(item) == 2 for item in text):
        text, pair = [item[0] for item in text], [item[1] for item in text]
    if pair is None:
        return [_checked(item, words) for item in text], [None] * len(text), True
    if not isinstance(pair, (list, tuple)) or len(pair) != len(text):
        count = len(pair) if isinstance(pair, (list, tuple)) else "one text"
        raise TokenizerError(f"text_pair: {count} for a batch of {len(text)}; pass a list of {len(text)}")
    return [_checked(item, words) for item in text], [_checked(item, words) for item in pair], True


def _is_words(text: object) -> bool:
    return isinstance(text, (list, tuple)) and all(isinstance(word, str) for word in text)


def _checked(text: object, words: bool) -> Text:
    if words and isinstance(text, (list, tuple)):
        return [check_text(word) for word in text]
    return check_text(text)


def check_text(text: object) -> str:
    """Gives `text` back if it is a string that UTF-8 can hold.

    Raises:
        TokenizerError: it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"{text!r:.60} is a {type(text).__name__}; only strings can be tokenized")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise TokenizerError(
                f"character {exc.start} is the lone surrogate U+{ord(text[exc.start]):04X}, which is no character; "
                "clean the text with text.encode('utf-8', 'replace').decode()"
            ) from exc
    return text


def _as_columns(inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Any]], bool]:
    """Columns of lists, one row per sequence, and whether there was a single bare sequence."""
    if not isinstance(inputs, Mapping):
        rows = [{name: _as_list(value) for name, value in item.items()} for item in inputs]
        columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    else:
        columns = {name: _as_list(value) for name, value in inputs.items()}
    if "input_ids" not in columns:
        raise TokenizerError(f"pad needs input_ids; it was given {sorted(columns)}")
    ids = columns["input_ids"]
    if isinstance(inputs, Mapping) and (not ids or not isinstance(ids[0], (list, tuple))):
        return {name: [value] for name, value in columns.items()}, True
    return columns, False


def _as_list(value: Any) -> Any:
    """Lists and numbers as they are, arrays and tensors through their `tolist`."""
    return value if isinstance(value, (list, tuple, int, float)) else value.tolist()
