"""Calling a tokenizer: `__call__`, `encode` and related methods add columns, padding and tensors to `_encode`.

The functions of this module are methods of `TokenizerBase`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from puna.errors import TokenizerError, TokenizerFeatureError, show
from puna.tokenizer.arguments import as_ids, check_text, split_batch, split_pair
from puna.tokenizer.calls.batch_encoding import BatchEncoding
from puna.tokenizer.calls.encoding import DEFAULTS, Call, Encoding, Input, SlowColumns, Text
from puna.tokenizer.calls.lengths import DEPRECATED, check_pair, check_side, notice, pad_encodings, resolve
from puna.tokenizer.special import LOGGER, AnyTokenizer
from puna.tokenizer.streams import clean_up

_IGNORED = ("sanitize_control_tokens",)
"""Arguments of transformers 5 that change nothing if they are false."""

_COLUMNS: dict[str, Callable[[Encoding], Any]] = {
    "input_ids": lambda encoding: encoding.ids,
    "token_type_ids": lambda encoding: encoding.type_ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "special_tokens_mask": lambda encoding: encoding.special_tokens_mask,
    "offset_mapping": lambda encoding: encoding.offsets,
    "length": len,
}
"""The columns that a call can return, in this order."""


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
    stride: int = 0,
    is_split_into_words: bool = False,
    pad_to_multiple_of: int | None = None,
    return_tensors: str | None = None,
    return_token_type_ids: bool | None = None,
    return_attention_mask: bool | None = None,
    return_overflowing_tokens: bool = False,
    return_special_tokens_mask: bool = False,
    return_offsets_mapping: bool = False,
    return_length: bool = False,
    verbose: bool = True,
    split_special_tokens: bool | None = None,
    padding_side: str | None = None,
    **options: Any,
) -> BatchEncoding:
    """Encodes a text, a pair of texts, or batches of either.

    Args:
        text, text_pair: a string, or a list of strings for a batch; with `is_split_into_words`, lists of words.
            A list or tuple of two texts in a batch is a pair.
        text_target, text_pair_target: as `text` and `text_pair`; if `text` is set too, their ids become `labels`.
        add_special_tokens: whether to add BOS and EOS, as the settings of this tokenizer specify.
        padding: True or "longest", "max_length", or False.
        truncation: True or "longest_first", "only_first", "only_second", or False.
        max_length: the length to truncate or pad to; `model_max_length` by default.
        stride: the number of tokens that a window repeats from the window before, or that `overflowing_tokens` repeats.
        pad_to_multiple_of: rounds the padded length up.
        return_tensors: "np", "pt", or None for lists.
        return_overflowing_tokens: also return the tokens that truncation removes. `LlamaTokenizerFast` returns a row
            per window, and `overflow_to_sample_mapping`, the index of the text of each row. `LlamaTokenizer` returns
            `overflowing_tokens` and `num_truncated_tokens`.
        return_offsets_mapping: also return the character range of each token (`LlamaTokenizerFast` only).
        return_length: also return the number of tokens; of a batch of `LlamaTokenizer`, without padding.
        verbose: whether to log notices, for example about texts that are longer than `model_max_length`.
        split_special_tokens: whether special tokens written in the text are encoded as text.
        padding_side: "left" or "right"; by default, the tokenizer's setting.
        options: deprecated arguments of transformers (`pad_to_max_length`, `truncation_strategy`), and arguments of
            Code Llama's tokenizers. `LlamaTokenizer` logs and ignores other names, like transformers.

    Raises:
        TokenizerError: an input is not a text, there is no padding token, or truncation cannot reach the length.
    """
    arguments = {name: value for name, value in locals().items() if name in DEFAULTS} | options
    settings = _settings(self, arguments)
    if text is None:
        if text_target is None:
            raise TokenizerError("nothing to encode: give text= or text_target=")
        return _encode_targets(self, text_target, text_pair_target, settings)
    if not self._in_target_context_manager:
        self._switch_to_input_mode()
    result = _encode_inputs(self, *split_batch(text, text_pair, is_split_into_words), settings)
    if text_target is not None:
        result["labels"] = _encode_targets(self, text_target, text_pair_target, settings)["input_ids"]
    return result


def _encode_targets(self: AnyTokenizer, text: Any, pair: Any, settings: Call) -> BatchEncoding:
    self._switch_to_target_mode()
    result = _encode_inputs(self, *split_batch(text, pair, settings.words), settings)
    self._switch_to_input_mode()
    return result


def encode(
    self: AnyTokenizer,
    text: Text,
    text_pair: Text | None = None,
    add_special_tokens: bool = True,
    padding: bool | str = False,
    truncation: bool | str | None = None,
    max_length: int | None = None,
    stride: int = 0,
    return_tensors: str | None = None,
    **options: Any,
) -> Any:
    """Returns the ids of one text or pair: a list, or with `return_tensors` a tensor of shape (1, tokens).

    Args:
        text, text_pair: a string, a list of tokens or token ids, or with `is_split_into_words` a list of words.
        options: the other arguments of a call.
    """
    options |= {"padding": padding, "truncation": truncation, "max_length": max_length, "stride": stride}
    options |= {"add_special_tokens": add_special_tokens, "return_tensors": return_tensors}
    return self.encode_plus(text, text_pair, **options)["input_ids"]


def encode_plus(
    self: AnyTokenizer, text: Text, text_pair: Text | None = None, *arguments: Any, **options: Any
) -> BatchEncoding:
    """Encodes one text or pair; a list of strings contains tokens, or with `is_split_into_words` words.

    Args:
        arguments, options: the arguments of a call from `add_special_tokens` on.
    """
    settings = _settings(self, dict(zip(DEFAULTS, arguments, strict=False)) | options)
    return _encode_inputs(self, [(text, text_pair)], False, settings)


def batch_encode_plus(
    self: AnyTokenizer, batch_text_or_text_pairs: Sequence[Any], *arguments: Any, **options: Any
) -> BatchEncoding:
    """Encodes a list of texts or pairs.

    Args:
        batch_text_or_text_pairs: strings, or tuples of two; also lists of words, tokens or token ids.
        arguments, options: the arguments of a call from `add_special_tokens` on.
    """
    settings = _settings(self, dict(zip(DEFAULTS, arguments, strict=False)) | options)
    if not isinstance(batch_text_or_text_pairs, (list, tuple)):
        raise TokenizerError(f"batch_encode_plus takes a list of texts, got {type(batch_text_or_text_pairs).__name__}")
    return _encode_inputs(self, [split_pair(t, settings.words) for t in batch_text_or_text_pairs], True, settings)


def prepare_for_model(
    self: AnyTokenizer, ids: list[int], pair_ids: list[int] | None = None, *arguments: Any, **options: Any
) -> BatchEncoding:
    """Adds special tokens to ids, truncates and pads them, and returns the columns of a call.

    Args:
        ids, pair_ids: token ids without special tokens.
        arguments, options: the arguments of a call from `add_special_tokens` on, without `is_split_into_words`; and
            `prepend_batch_axis`, for tensors of shape (1, tokens) instead of (tokens,).
    """
    check_pair(ids, pair_ids)
    names = [*(name for name in DEFAULTS if name != "is_split_into_words"), "prepend_batch_axis"]
    values = dict(zip(names, arguments, strict=False)) | options
    axis = values.pop("prepend_batch_axis", False)
    settings = _settings(self, values)
    encoding = Encoding(self._id_columns(list(ids), None if pair_ids is None else list(pair_ids), settings))
    _report_length(self, encoding, settings)
    return _slow_result(pad_encodings(self, [encoding], settings.plan, settings.side), False, settings, axis)


def _settings(self: AnyTokenizer, passed: Mapping[str, Any]) -> Call:
    arguments = DEFAULTS | dict(passed)
    infill = {name: arguments.pop(name) for name in self._infill_names if name in arguments}
    unknown = arguments.keys() - DEFAULTS.keys() - set(DEPRECATED)
    unknown -= {name for name in _IGNORED if not arguments.get(name)}
    self._report_unknown({name: arguments[name] for name in sorted(unknown)})
    names = self.model_input_names
    columns = {
        "input_ids": True,
        "token_type_ids": arguments["return_token_type_ids"],
        "attention_mask": arguments["return_attention_mask"],
        "special_tokens_mask": arguments["return_special_tokens_mask"],
        "offset_mapping": arguments["return_offsets_mapping"],
        "length": arguments["return_length"],
    }
    split, side = arguments["split_special_tokens"], arguments["padding_side"]
    return Call(
        plan=resolve(self, arguments),
        add_special_tokens=arguments["add_special_tokens"],
        words=arguments["is_split_into_words"],
        split=self.split_special_tokens if split is None else split,
        columns=[name for name, flag in columns.items() if (name in names if flag is None else flag)],
        overflow=arguments["return_overflowing_tokens"],
        tensors=arguments["return_tensors"],
        side=check_side("padding_side", self.padding_side if side is None else side),
        verbose=arguments["verbose"],
        infill=infill,
    )


def _encode_inputs(
    self: AnyTokenizer, pairs: Sequence[tuple[Any, Any]], batched: bool, settings: Call
) -> BatchEncoding:
    if not self.is_fast and "offset_mapping" in settings.columns:
        raise TokenizerFeatureError("offsets need the fast tokenizer; load with LlamaTokenizerFast")
    encodings = self._encode([_input(self, *pair, batched, settings) for pair in pairs], settings)
    for encoding in encodings:
        _report_length(self, encoding, settings)
    encodings = pad_encodings(self, encodings, settings.plan, settings.side)
    if all(isinstance(encoding.columns, SlowColumns) for encoding in encodings):
        return _slow_result(encodings, batched, settings, not batched)
    return _fast_result(encodings, batched, settings)


def _input(self: AnyTokenizer, text: Any, pair: Any, batched: bool, settings: Call) -> Input:
    """Returns the checked texts and how to encode them."""
    is_list = isinstance(text, (list, tuple)) and not settings.words and bool(text) and isinstance(text[0], str)
    if self.is_fast and is_list:
        if len(text) != 2 or pair is not None:
            raise TokenizerError("the fast tokenizer takes strings, not tokens; pass the text or the ids of the tokens")
        text, pair = text
    if self.is_fast and not batched and not pair:
        pair = None  # as in transformers, whose fast tokenizer treats an empty pair as no pair
    text, pair = check_text(text, settings.words), None if pair is None else check_text(pair, settings.words)
    item = Input(text, pair, settings.add_special_tokens, settings.split, settings.words)
    return self._infill(item, settings.infill) if self._infill_names else item


def _report_length(self: AnyTokenizer, encoding: Encoding, settings: Call) -> None:
    if settings.plan.max_length is None and settings.verbose and len(encoding) > self.model_max_length:
        notice(
            self,
            "sequence-length-is-longer-than-the-specified-maximum",
            "Token indices sequence length is longer than the specified maximum sequence length for this model "
            f"({len(encoding)} > {self.model_max_length}); truncation=True shortens texts to the maximum",
        )


def _fast_result(encodings: list[Encoding], batched: bool, settings: Call) -> BatchEncoding:
    """Returns the columns with a row per window; for one text, without tensors or windows, just its row."""
    samples = [index for index, e in enumerate(encodings) for _ in range(1 + len(e.overflowing))]
    rows = [window for encoding in encodings for window in (encoding, *encoding.overflowing)]
    data = {name: [_COLUMNS[name](row) for row in rows] for name in settings.columns}
    if settings.overflow:
        data["overflow_to_sample_mapping"] = samples
    elif not batched and settings.tensors is None:
        data = {name: column[0] if isinstance(column[0], list) else column for name, column in data.items()}
    return BatchEncoding(data, rows, settings.tensors)


def _slow_result(encodings: list[Encoding], batched: bool, settings: Call, prepend_batch_axis: bool) -> BatchEncoding:
    """Returns the columns with a row per text. As in transformers, lengths of a batch do not count padding."""
    rows: list[dict[str, Any]] = []
    for encoding in encodings:
        row = {name: _COLUMNS[name](encoding) for name in settings.columns}
        if batched and "length" in row:
            row["length"] = len(encoding) - encoding.left - encoding.right
        columns = encoding.columns
        if settings.overflow and isinstance(columns, SlowColumns):
            row["overflowing_tokens"] = list(columns.overflow)
            row["num_truncated_tokens"] = columns.total_length - (settings.plan.max_length or columns.total_length)
        rows.append(row)
    names = list(rows[0]) if rows else settings.columns
    data = {name: [row[name] for row in rows] for name in names} if batched else rows[0]
    return BatchEncoding(data, None, settings.tensors, prepend_batch_axis)


def decode(
    self: AnyTokenizer,
    token_ids: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
    spaces_between_special_tokens: bool = True,
    **options: Any,
) -> Any:
    """Returns the text of one sequence of ids; of several sequences a list of texts, as in transformers 5.

    Args:
        token_ids: an id, a list, an array or a tensor.
        skip_special_tokens: leave special tokens out.
        clean_up_tokenization_spaces: remove spaces before punctuation and English contractions. None uses the
            tokenizer's setting, which has no effect on BPE vocabularies, as in transformers 5.23: their text contains
            exactly the spaces that the tokens spell.
        spaces_between_special_tokens: `LlamaTokenizer` only: whether to put spaces around added tokens.
        options: other arguments have no effect, as in transformers.

    Raises:
        TokenizerError: the vocabulary has no such id.
    """
    if unknown := options.keys() - {"use_source_tokenizer"}:
        LOGGER.warning("Keyword arguments %s not recognized.", sorted(unknown))
    values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    arguments = (skip_special_tokens, clean_up_tokenization_spaces, spaces_between_special_tokens)
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], (list, tuple)):
        return [self.decode(ids, *arguments) for ids in values]
    text = self._decode(as_ids(values), skip_special_tokens, spaces_between_special_tokens)
    clean = self._cleans_up if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
    return clean_up(text) if clean else text


def batch_decode(
    self: AnyTokenizer,
    sequences: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
    **options: Any,
) -> list[str]:
    """Returns the text of each sequence of ids; `options` are those of `decode`."""
    if not isinstance(sequences, Iterable) or isinstance(sequences, str | bytes | Mapping):
        raise TokenizerError(f"sequences is {show(sequences)}; it must be a list of lists of token ids")
    return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **options) for ids in sequences]
