"""The special tokens by name (`bos_token`, `eos_token`, ...), their ids, and adding tokens to a vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast, overload

from puna.errors import TokenizerError
from puna.tokenizer.added_token import AddedToken, TokenLike, as_added_token

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The order in which a constructor adds those that the vocabulary lacks; transformers uses the same."""

ADDITIONAL = "additional_special_tokens"


class _NamedToken:
    """The text of a special token; setting it wants a token of the vocabulary, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> _NamedToken: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> str | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> _NamedToken | str | None:
        if instance is None:
            return self
        token = instance._named.get(self.name)
        return None if token is None else token.content

    def __set__(self, instance: SpecialTokens, value: TokenLike | None) -> None:
        if value is not None and instance._token_id(str(value)) is None:
            raise TokenizerError(
                f"{self.name} = {str(value)!r}: no such token in this vocabulary; "
                f"add it with add_special_tokens({{{self.name!r}: {str(value)!r}}})"
            )
        instance._name(self.name, value)


class _NamedTokenId:
    """The id of a special token; setting it wants an id of the vocabulary, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    @overload
    def __get__(self, instance: None, owner: type) -> _NamedTokenId: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> int | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> _NamedTokenId | int | None:
        if instance is None:
            return self
        token = instance._named.get(self.name)
        return None if token is None else instance._token_id(token.content)

    def __set__(self, instance: SpecialTokens, value: int | None) -> None:
        instance._name(self.name, None if value is None else instance._id_token(value))


class SpecialTokens(ABC):
    """Special tokens over a vocabulary that subclasses look up and extend."""

    bos_token = _NamedToken()
    eos_token = _NamedToken()
    unk_token = _NamedToken()
    sep_token = _NamedToken()
    pad_token = _NamedToken()
    cls_token = _NamedToken()
    mask_token = _NamedToken()
    bos_token_id = _NamedTokenId()
    eos_token_id = _NamedTokenId()
    unk_token_id = _NamedTokenId()
    sep_token_id = _NamedTokenId()
    pad_token_id = _NamedTokenId()
    cls_token_id = _NamedTokenId()
    mask_token_id = _NamedTokenId()

    def __init__(self) -> None:
        self._named: dict[str, AddedToken] = {}
        self._additional: list[AddedToken] = []
        self._special_ids: frozenset[int] | None = None

    @abstractmethod
    def _token_id(self, token: str) -> int | None:
        """The id of exactly this token, or None."""

    @abstractmethod
    def _id_token(self, index: int) -> str:
        """The token of an id.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """

    @abstractmethod
    def _add(self, tokens: Sequence[AddedToken]) -> int:
        """Registers tokens; those the vocabulary lacks get the next ids. Returns how many those were."""

    def _name(self, name: str, value: TokenLike | None) -> None:
        self._special_ids = None
        if value is None:
            self._named.pop(name, None)
        else:
            self._named[name] = as_added_token(value, special=True)

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a name of their own."""
        return [token.content for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, value: Sequence[TokenLike] | None) -> None:
        self._special_ids = None
        self._additional = [as_added_token(token, special=True) for token in value or ()]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Their ids; those not in the vocabulary are left out."""
        ids = (self._token_id(token) for token in self.additional_special_tokens)
        return [index for index in ids if index is not None]

    @property
    def special_tokens_map_extended(self) -> dict[str, AddedToken | list[AddedToken]]:
        """Name to token, of those that are set."""
        found: dict[str, AddedToken | list[AddedToken]] = {
            name: self._named[name] for name in NAMES if name in self._named
        }
        if self._additional:
            found[ADDITIONAL] = list(self._additional)
        return found

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Name to text, of those that are set."""
        return {
            name: [token.content for token in value] if isinstance(value, list) else value.content
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[AddedToken]:
        """Every special token once, in the order of the names."""
        unique: dict[str, AddedToken] = {}
        for token in (*(self._named[name] for name in NAMES if name in self._named), *self._additional):
            unique.setdefault(token.content, token)
        return list(unique.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """The text of every special token."""
        return [token.content for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """The id of every special token."""
        ids = (self._token_id(token) for token in self.all_special_tokens)
        return [index for index in ids if index is not None]

    def _special_id_set(self) -> frozenset[int]:
        if self._special_ids is None:
            self._special_ids = frozenset(self.all_special_ids)
        return self._special_ids

    def add_tokens(self, new_tokens: TokenLike | Sequence[TokenLike], special_tokens: bool = False) -> int:
        """Adds tokens at the end of the vocabulary; those already in it are only marked.

        Returns:
            How many ids were added. A model's embeddings must grow with them.
        """
        listed: Sequence[Any] = new_tokens if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        tokens = [as_added_token(token, special_tokens) for token in listed]
        if any(not token.content for token in tokens):
            raise TokenizerError("an added token is empty; its text must have at least one character")
        return self._add([token.as_special() for token in tokens] if special_tokens else tokens)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, TokenLike | Sequence[TokenLike]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Names special tokens and adds those that the vocabulary lacks; returns how many ids were added."""
        added = 0
        for name, value in special_tokens_dict.items():
            if name == ADDITIONAL and isinstance(value, (list, tuple)):
                tokens = [as_added_token(token, special=True) for token in value]
                added += self.add_tokens(tokens, special_tokens=True)
                kept = [] if replace_additional_special_tokens else self._additional
                self.additional_special_tokens = list({t.content: t for t in (*kept, *tokens)}.values())
            elif name in NAMES and not isinstance(value, (list, tuple)):
                token = as_added_token(cast("TokenLike", value), special=True)
                added += self.add_tokens(token, special_tokens=True)
                self._name(name, token)
            else:
                raise TokenizerError(
                    f"{name!r}: {value!r} is no special token; names are {', '.join(NAMES)} with a token, "
                    f"or {ADDITIONAL} with a list of tokens"
                )
        return added
