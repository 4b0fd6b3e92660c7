"""Special tokens: `AddedToken`, adding tokens, and the attributes `bos_token`, `bos_token_id`, ..."""

# ruff: noqa: D102  # base.py documents the members of AnyTokenizer

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast, overload

from puna.errors import TokenizerError, show

if TYPE_CHECKING:
    import tokenizers

    from puna.tokenizer.encoding import BatchEncoding, Encoding, Input

TokenLike: TypeAlias = "str | AddedToken | tokenizers.AddedToken"

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Constructors add missing tokens to the vocabulary in this order, as in transformers."""

ADDITIONAL = "additional_special_tokens"


@dataclass(frozen=True)
class AddedToken:
    """A token that is split off the text before the vocabulary's rules apply.

    Attributes:
        content: the text of the token.
        single_word: match only between spaces.
        lstrip: also remove the whitespace before the token.
        rstrip: also remove the whitespace after the token.
        normalized: match in the normalised text instead of the raw one.
        special: skipped by `decode(skip_special_tokens=True)`.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def __str__(self) -> str:
        return self.content

    def as_special(self) -> AddedToken:
        """Returns the same token, marked as special."""
        return replace(self, special=True)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in the form of `added_tokens_decoder` in tokenizer_config.json."""
        return asdict(self)


def as_added_token(value: TokenLike, special: bool = False) -> AddedToken:
    """Converts a string or any AddedToken; a string becomes special if `special`, else `normalized`."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    try:
        fields = (value.content, value.single_word, value.lstrip, value.rstrip, value.normalized, value.special)
    except AttributeError:
        raise TokenizerError(f"{show(value)} is not a token; pass a string or an AddedToken") from None
    return AddedToken(*fields)


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
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(value["content"], **flags)


def add_tokens(self: AnyTokenizer, new_tokens: TokenLike | Sequence[TokenLike], special_tokens: bool = False) -> int:
    """Adds tokens at the end of the vocabulary; an existing token keeps its id and is marked as added.

    Returns:
        The number of new ids. A model's embeddings must grow by the same number of rows.
    """
    values: Sequence[Any] = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
    tokens = [as_added_token(token, special_tokens) for token in values]
    if any(not token.content for token in tokens):
        raise TokenizerError("an added token is empty; its text must have at least one character")
    return self._add([token.as_special() for token in tokens] if special_tokens else tokens)


def add_special_tokens(
    self: AnyTokenizer,
    special_tokens_dict: Mapping[str, TokenLike | Sequence[TokenLike]],
    replace_additional_special_tokens: bool = True,
) -> int:
    """Sets special tokens by name and adds missing tokens to the vocabulary; returns the number of new ids."""
    count = 0
    for name, value in special_tokens_dict.items():
        if name == ADDITIONAL and isinstance(value, (list, tuple)):
            tokens = [as_added_token(token, special=True) for token in value]
            count += self.add_tokens(tokens, special_tokens=True)
            kept = [] if replace_additional_special_tokens else self._additional
            self.additional_special_tokens = list({t.content: t for t in (*kept, *tokens)}.values())
        elif name in NAMES and not isinstance(value, (list, tuple)):
            token = as_added_token(cast("TokenLike", value), special=True)
            count += self.add_tokens(token, special_tokens=True)
            self._set_named(name, token)
        else:
            raise TokenizerError(
                f"{name!r}: {show(value)} is not a special token; pass one of {', '.join(NAMES)} with a token, "
                f"or {ADDITIONAL} with a list of tokens"
            )
    return count


class NamedToken:
    """Attribute: the text of a special token. Only a token of the vocabulary, or None, can be assigned."""

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
        if value is not None and instance._token_id(str(value)) is None:
            raise TokenizerError(
                f"{self.name} = {str(value)!r}: the vocabulary has no such token; "
                f"add it with add_special_tokens({{{self.name!r}: {str(value)!r}}})"
            )
        instance._set_named(self.name, value)


class NamedTokenId:
    """Attribute: the id of a special token. Only an id of the vocabulary, or None, can be assigned."""

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
        return None if token is None else instance._token_id(token.content)

    def __set__(self, instance: AnyTokenizer, value: int | None) -> None:
        instance._set_named(self.name, None if value is None else instance._id_token(value))


class AnyTokenizer(Protocol):
    """The members of `TokenizerBase` that the modules imported by base.py use."""

    is_fast: ClassVar[bool]
    _named: dict[str, AddedToken]
    _additional: list[AddedToken]
    additional_special_tokens: Any
    chat_template: str | Mapping[str, str] | None
    model_input_names: list[str]
    model_max_length: int
    other_config: dict[str, Any]
    padding_side: str
    split_special_tokens: bool
    truncation_side: str

    @property
    def _first_keeps_more(self) -> bool | None: ...
    @property
    def pad_token(self) -> str | None: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def vocab_size(self) -> int: ...
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
    def _encode(self, inputs: Sequence[Input]) -> list[Encoding]: ...
    def _decode(self, ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool) -> str: ...
    def _class_config(self) -> dict[str, Any]: ...
    def _pipeline_json(self) -> dict[str, Any] | None: ...
    def __call__(self, *args: Any, **options: Any) -> BatchEncoding: ...
    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> Any: ...
    def decode(self, token_ids: Any, skip: bool, clean_up: bool | None, /) -> str: ...
    def add_tokens(self, new_tokens: Any, *, special_tokens: bool) -> int: ...
    def get_chat_template(self, chat_template: str | None = None, tools: Sequence[Any] | None = None) -> str: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool) -> Any: ...
    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]: ...
