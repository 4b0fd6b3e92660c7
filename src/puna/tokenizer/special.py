"""Special tokens: `AddedToken`, adding tokens, and the attributes `bos_token`, `bos_token_id`, ..."""

# ruff: noqa: D102  # base.py documents the members of AnyTokenizer

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast, overload

from puna.errors import TokenizerError, show

if TYPE_CHECKING:
    import tokenizers

    from puna.tokenizer.calls.batch_encoding import BatchEncoding
    from puna.tokenizer.calls.encoding import Call, Encoding, Input, SlowColumns

TokenLike: TypeAlias = "str | AddedToken | tokenizers.AddedToken"

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Constructors add missing tokens to the vocabulary in this order, as in transformers."""

ADDITIONAL = "additional_special_tokens"
EXTRA = "extra_special_tokens"
"""The name of `ADDITIONAL` in transformers 5, which also allows names for these tokens."""

LOGGER = logging.getLogger("puna.tokenizer")
"""Receives the notices that transformers logs; without logging settings, Python prints them to the standard error."""


_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


class AddedToken:
    """A token that is split off the text before the vocabulary's rules apply.

    Args:
        content: the text of the token.
        single_word: match only between spaces.
        lstrip: also remove the whitespace before the token.
        rstrip: also remove the whitespace after the token.
        normalized: match in the normalised text instead of the raw one; by default, special tokens do not.
        special: skipped by `decode(skip_special_tokens=True)`.
    """

    def __init__(
        self,
        content: str = "",
        single_word: bool = False,
        lstrip: bool = False,
        rstrip: bool = False,
        normalized: bool | None = None,
        special: bool = False,
    ) -> None:
        self.content, self.special = content, special
        self.single_word, self.lstrip, self.rstrip = single_word, lstrip, rstrip
        self._normalized = normalized

    @property
    def normalized(self) -> bool:
        """Whether the token matches in the normalised text; by default, unless it is special."""
        return not self.special if self._normalized is None else self._normalized

    @normalized.setter
    def normalized(self, value: bool) -> None:
        self._normalized = value

    def with_flags(self, **flags: bool) -> AddedToken:
        """Returns a copy with other flags; an unspecified `normalized` stays unspecified."""
        fields = {name: getattr(self, name) for name in _FIELDS} | {"normalized": self._normalized}
        return AddedToken(**(fields | flags))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in the form of `added_tokens_decoder` in tokenizer_config.json."""
        return {name: getattr(self, name) for name in _FIELDS}

    __getstate__ = to_dict

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal; `other` may also be an AddedToken of the library tokenizers."""
        fields = tuple(getattr(other, name, None) for name in _FIELDS)
        return fields == tuple(self.to_dict().values()) if fields[0] is not None else NotImplemented

    def __hash__(self) -> int:
        return hash(self.content)

    def __str__(self) -> str:
        return self.content

    def __repr__(self) -> str:
        flags = ", ".join(f"{name}={getattr(self, name)}" for name in ("rstrip", "lstrip", *_FIELDS[1:2], *_FIELDS[4:]))
        return f"AddedToken({json.dumps(self.content, ensure_ascii=False)}, {flags})"


def as_added_token(value: TokenLike, special: bool = False) -> AddedToken:
    """Converts a string or any AddedToken; a string becomes special if `special`, else `normalized`."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    try:
        fields = {name: getattr(value, name) for name in _FIELDS}
    except AttributeError:
        raise TokenizerError(f"{show(value)} is not a token; pass a string or an AddedToken") from None
    if fields["normalized"] is not fields["special"]:  # the library's default, which it does not mark
        fields["normalized"] = None
    return AddedToken(**fields)


def added_token_from_json(value: object, where: str, special: bool = False) -> AddedToken:
    """Reads a token from a configuration file: a string, or an object with the fields of `AddedToken`.

    Args:
        where: file and key, for the error message.
        special: whether a token is special if its fields do not specify it.
    """
    if isinstance(value, str):
        return as_added_token(value, special)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise TokenizerError(f"{where}: {show(value)} is not a token; expected a string or an object with 'content'")
    flags = {
        name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in value
    }
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TokenizerError(
                f"{where}: {name} of token {show(value['content'])} is {show(flag)}; expected true or false"
            )
    flags.setdefault("special", special)
    return AddedToken(value["content"], **flags)


def add_tokens(self: AnyTokenizer, new_tokens: TokenLike | Sequence[TokenLike], special_tokens: bool = False) -> int:
    """Adds tokens at the end of the vocabulary; an existing token keeps its id and is marked as added.

    Returns:
        The number of new ids. A model's embeddings must grow by the same number of rows.
    """
    if not new_tokens:
        return 0
    values: Sequence[Any] = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
    if wrong := [token for token in values if not isinstance(token, str) and not hasattr(token, "content")]:
        raise TokenizerError(f"{show(wrong[0])} is not a token; pass texts or AddedTokens")
    names = set(self.all_special_tokens)
    kept = (
        {} if self.is_fast else self.added_tokens_encoder
    )  # as in transformers, a string does not change such a token
    tokens = [
        as_added_token(t, special_tokens or t in names) for t in values if not isinstance(t, str) or t not in kept
    ]
    if any(not token.content for token in tokens):
        raise TokenizerError("an added token is empty; its text must have at least one character")
    return self._add([as_special(self, token) for token in tokens] if special_tokens else tokens)


def check_types(arguments: Mapping[str, Any]) -> None:
    """Raises TokenizerError if an argument of the constructor has the wrong type."""
    for name, kinds, text in (
        ("additional_special_tokens", list | tuple | Mapping, "a list of tokens"),
        ("model_input_names", list | tuple, "a list of texts"),
        ("chat_template", str | list | tuple | Mapping, "Jinja source, or a list of named templates"),
    ):
        if arguments.get(name) is not None and not isinstance(arguments[name], kinds):
            raise TokenizerError(f"{name} is {show(arguments[name])}; it must be {text}")
    length = arguments.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, Real) or math.isnan(length)):
        raise TokenizerError(f"model_max_length is {show(length)}; it must be a number of tokens")


def as_special(self: AnyTokenizer, token: AddedToken) -> AddedToken:
    """Returns the token, marked as special. As in transformers, the slow tokenizer does not change `normalized`."""
    if token.special:
        return token
    return (
        token.with_flags(special=True) if self.is_fast else token.with_flags(special=True, normalized=token.normalized)
    )


def add_special_tokens(
    self: AnyTokenizer,
    special_tokens_dict: Mapping[str, TokenLike | Sequence[TokenLike]],
    replace_additional_special_tokens: bool = True,
    *,
    replace_extra_special_tokens: bool | None = None,
) -> int:
    """Sets special tokens by name and adds missing tokens to the vocabulary; returns the number of new ids.

    Args:
        special_tokens_dict: name to token; "additional_special_tokens", or "extra_special_tokens" as in transformers 5,
            has a list.
        replace_additional_special_tokens: whether such a list replaces the tokens that were set before, which remain
            in the vocabulary. transformers 5 calls this argument `replace_extra_special_tokens`.
    """
    replaces = (
        replace_additional_special_tokens if replace_extra_special_tokens is None else replace_extra_special_tokens
    )
    if not isinstance(special_tokens_dict, Mapping):
        raise TokenizerError(f"special_tokens_dict is {show(special_tokens_dict)}; it must be a dictionary of tokens")
    added: dict[str, AddedToken] = {}
    for name, value in special_tokens_dict.items():
        if name in (ADDITIONAL, EXTRA) and isinstance(value, (list, tuple)):
            tokens = [as_special(self, as_added_token(token, special=True)) for token in value]
            kept = [] if replaces else self.special_tokens_map_extended.get(ADDITIONAL, [])
            self.additional_special_tokens = list(
                {str(t): t for t in (*cast("list[AddedToken]", kept), *tokens)}.values()
            )
        elif name in NAMES and not isinstance(value, (list, tuple)):
            tokens = [as_special(self, as_added_token(cast("TokenLike", value), special=True))]
            self._set_named(name, tokens[0])
        else:
            raise TokenizerError(
                f"{name!r}: {show(value)} is not a special token; pass one of {', '.join(NAMES)} with a token, "
                f"or {ADDITIONAL} with a list of tokens"
            )
        added |= {token.content: token for token in tokens}
    return self.add_tokens(list(added.values()), special_tokens=True)


class NamedToken:
    """Attribute: the text of a special token, or None.

    As in transformers, a token outside the vocabulary can be assigned; a log message then states its id.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> NamedToken: ...
    @overload
    def __get__(self, instance: AnyTokenizer, owner: type) -> str | None: ...
    def __get__(self, instance: AnyTokenizer | None, owner: type) -> NamedToken | str | None:
        if instance is None:
            return self
        token = instance._named.get(self.name)
        return None if token is None else token.content

    def __set__(self, instance: AnyTokenizer, value: TokenLike | None) -> None:
        instance._set_named(self.name, value)
        if value is not None and instance._token_id(str(value)) is None:
            LOGGER.warning(
                "%s = %r: the vocabulary has no such token, so %s_id is %s, the id of the unknown token; "
                "add the token with add_special_tokens({%r: %r})",
                *(self.name, str(value), self.name, instance.unk_token_id, self.name, str(value)),
            )


class NamedTokenId:
    """Attribute: the id of a special token. Only an id of the vocabulary, or None, can be assigned.

    A token outside the vocabulary has the id of the unknown token, as in transformers.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    @overload
    def __get__(self, instance: None, owner: type) -> NamedTokenId: ...
    @overload
    def __get__(self, instance: AnyTokenizer, owner: type) -> int | None: ...
    def __get__(self, instance: AnyTokenizer | None, owner: type) -> NamedTokenId | int | None:
        if instance is None:
            return self
        token = instance._named.get(self.name)
        if token is None:
            return None
        index = instance._token_id(token.content)
        unk = instance._named.get("unk_token")
        return instance._token_id(unk.content) if index is None and unk is not None else index

    def __set__(self, instance: AnyTokenizer, value: int | None) -> None:
        instance._set_named(self.name, None if value is None else instance._id_token(value))


class StoredToken:
    """Attribute such as `_pad_token`, which data collators read: the token as an `AddedToken`, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removeprefix("_")

    @overload
    def __get__(self, instance: None, owner: type) -> StoredToken: ...
    @overload
    def __get__(self, instance: AnyTokenizer, owner: type) -> AddedToken | None: ...
    def __get__(self, instance: AnyTokenizer | None, owner: type) -> StoredToken | AddedToken | None:
        return self if instance is None else instance._named.get(self.name)

    def __set__(self, instance: AnyTokenizer, value: TokenLike | None) -> None:
        instance._set_named(self.name, value)


class AnyTokenizer(Protocol):
    """The members of `TokenizerBase` that the modules imported by base.py use."""

    is_fast: ClassVar[bool]
    _infill_names: ClassVar[tuple[str, ...]]
    _in_target_context_manager: bool
    _named: dict[str, AddedToken]
    additional_special_tokens: Any
    chat_template: Any
    clean_up_tokenization_spaces: bool
    deprecation_warnings: dict[str, bool]
    model_input_names: list[str]
    model_max_length: int
    name_or_path: str
    other_config: dict[str, Any]
    padding_side: str
    split_special_tokens: bool
    truncation_side: str

    @property
    def pad_token(self) -> str | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def pad_token_type_id(self) -> int: ...
    @property
    def unk_token_id(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def all_special_tokens(self) -> list[str]: ...
    @property
    def all_special_tokens_extended(self) -> list[AddedToken]: ...
    @property
    def added_tokens_encoder(self) -> dict[str, int]: ...
    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]: ...
    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]: ...
    @property
    def special_tokens_map_extended(self) -> dict[str, AddedToken | list[AddedToken]]: ...
    @property
    def default_chat_template(self) -> str: ...
    @property
    def _has_model(self) -> bool: ...
    @property
    def _has_own_ids(self) -> bool: ...
    @property
    def _cleans_up(self) -> bool: ...
    def _token_id(self, token: str) -> int | None: ...
    def _id_token(self, index: int) -> str: ...
    def _add(self, tokens: Sequence[AddedToken]) -> int: ...
    def _set_named(self, name: str, value: TokenLike | None) -> None: ...
    def get_vocab(self) -> dict[str, int]: ...
    def _encode(self, inputs: Sequence[Input], call: Call) -> list[Encoding]: ...
    def _infill(self, item: Input, arguments: Mapping[str, Any]) -> Input: ...
    def _report_unknown(self, arguments: Mapping[str, Any]) -> None: ...
    def _id_columns(self, ids: list[int], pair_ids: list[int] | None, call: Call) -> SlowColumns: ...
    def _switch_to_input_mode(self) -> None: ...
    def _switch_to_target_mode(self) -> None: ...
    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str: ...
    def _class_config(self) -> dict[str, Any]: ...
    def _pipeline_json(self) -> dict[str, Any] | None: ...
    def __call__(self, *args: Any, **options: Any) -> BatchEncoding: ...
    def encode_plus(self, *args: Any, **options: Any) -> BatchEncoding: ...
    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> Any: ...
    def decode(self, *arguments: Any, **options: Any) -> Any: ...
    def add_tokens(self, new_tokens: Any, *, special_tokens: bool) -> int: ...
    def convert_tokens_to_ids(self, tokens: str | Sequence[str] | None) -> Any: ...
    def num_special_tokens_to_add(self, pair: bool = False) -> int: ...
    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: list[int] | None) -> list[int]: ...
    def get_special_tokens_mask(self, token_ids_0: list[int], token_ids_1: list[int] | None) -> list[int]: ...
    def truncate_sequences(
        self, ids: list[int], pair_ids: list[int] | None, count: int, strategy: str, stride: int, /
    ) -> tuple[list[int], list[int] | None, list[int]]: ...
    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool, **options: Any) -> Any: ...
    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]: ...
    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]: ...
