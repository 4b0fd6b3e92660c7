"""A token beside the vocabulary's own: how it is matched in text, and whether it is special."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from puna.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

TokenLike: TypeAlias = "str | AddedToken | tokenizers.AddedToken"


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of the text before the vocabulary sees it.

    Attributes:
        content: its text.
        single_word: match only where it stands alone between spaces.
        lstrip: take the whitespace before it along.
        rstrip: take the whitespace after it along.
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
        """The same token, special."""
        return replace(self, special=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as `added_tokens_decoder` of tokenizer_config.json spells them."""
        return asdict(self)


def as_added_token(value: TokenLike, special: bool = False) -> AddedToken:
    """Reads a string or any AddedToken; a bare string becomes a special token, or a normalised plain one."""
    if isinstance(value, AddedToken):
        return value
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    try:
        fields = (value.content, value.single_word, value.lstrip, value.rstrip, value.normalized, value.special)
    except AttributeError:
        raise TokenizerError(f"{value!r} is not a token; pass a string or an AddedToken") from None
    return AddedToken(*fields)


def added_token_from_json(value: object, where: str, special: bool = False) -> AddedToken:
    """Reads a token from a configuration file: a string, or an object with the fields of `AddedToken`.

    Args:
        where: file and key, for the error.
        special: whether a token that does not say so itself is special.
    """
    if isinstance(value, str):
        return as_added_token(value, special)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise TokenizerError(f"{where}: {value!r} is not a token; a string or an object with 'content' is needed")
    flags = {
        name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in value
    }
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TokenizerError(f"{where}: {name} of token {value['content']!r} is {flag!r}; true or false is needed")
    flags.setdefault("special", special)
    flags.setdefault("normalized", not flags["special"])
    return AddedToken(value["content"], **flags)
