"""`Input` (texts to encode) and `Encoding` (one encoded sequence).

Truncation and padding do not copy: an `Encoding` refers to the columns from `tokenizers` or SentencePiece, and
records the indexes of the tokens that truncation kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

from puna.errors import TokenizerError

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")

Columns: TypeAlias = "tokenizers.Encoding | SlowColumns"
"""One encoded text or pair, before truncation and padding."""

Text: TypeAlias = str | Sequence[str] | Sequence[int]
"""One text: a string, words, tokens or token ids."""


DEFAULTS: dict[str, Any] = {
    "add_special_tokens": True, "padding": False, "truncation": None, "max_length": None, "stride": 0,
    "is_split_into_words": False, "pad_to_multiple_of": None, "return_tensors": None, "return_token_type_ids": None,
    "return_attention_mask": None, "return_overflowing_tokens": False, "return_special_tokens_mask": False,
    "return_offsets_mapping": False, "return_length": False, "verbose": True,
    "split_special_tokens": None, "padding_side": None,
}  # fmt: skip
"""The arguments of a call after its texts, in the order of transformers 4.34, and their defaults."""


@dataclass(frozen=True)
class Input:
    """A text or a pair, and how to encode it.

    Attributes:
        words: whether a list of strings contains words, which are encoded one by one, or tokens.
        infill: whether a pair of texts is a prefix and a suffix, between which Code Llama writes.
        suffix_first: whether the suffix comes first in the ids of such a pair.
    """

    text: Text
    pair: Text | None
    add_special_tokens: bool
    split_special_tokens: bool
    words: bool = False
    infill: bool = False
    suffix_first: bool = False


@dataclass(frozen=True)
class Plan:
    """The strategies for padding and truncation (None: not padded, not truncated), and the lengths."""

    padding: str | None = None
    truncation: str | None = None
    max_length: int | None = None
    multiple_of: int | None = None
    stride: int = 0


@dataclass(frozen=True)
class Call:
    """The arguments of a call.

    Attributes:
        columns: the names of the columns to return.
        infill: arguments of Code Llama's tokenizers.
    """

    plan: Plan
    add_special_tokens: bool
    words: bool
    split: bool
    columns: Sequence[str]
    overflow: bool
    tensors: str | None
    side: str
    verbose: bool
    infill: Mapping[str, Any]


class CharSpan(NamedTuple):
    """The characters from `start` up to, but not including, `end`."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """The tokens from `start` up to, but not including, `end`."""

    start: int
    end: int


@dataclass(frozen=True)
class SlowColumns:
    """The columns of a text or pair encoded by SentencePiece, which reports neither words nor offsets.

    Attributes:
        first_length: number of tokens of the first text, without special tokens.
        token_of: returns the token of an id.
        overflow: the tokens that truncation removed, after `stride` tokens before them.
        total_length: the number of tokens before truncation.
    """

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]
    first_length: int
    token_of: Callable[[int], str]
    overflow: Sequence[int] = ()
    total_length: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary's spelling of each token."""
        return [self.token_of(index) for index in self.ids]

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 for tokens of the first text, 1 for tokens of the second, None for special tokens."""
        result: list[int | None] = []
        seen = 0
        for special in self.special_tokens_mask:
            result.append(None if special else int(seen >= self.first_length))
            seen += not special
        return result

    @property
    def word_ids(self) -> list[int | None]:
        """Not available."""
        raise TokenizerError("word ids need the fast tokenizer; load with LlamaTokenizerFast")

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """Not available."""
        raise TokenizerError("offsets need the fast tokenizer; load with LlamaTokenizerFast")


@dataclass(frozen=True)
class Encoding:
    """One sequence: its `Columns`, the indexes of the kept tokens (None: all), and the padding on each side.

    Attributes:
        overflowing: the other windows of a truncated text (fast tokenizer only).
    """

    columns: Columns
    kept: tuple[int, ...] | None = None
    left: int = 0
    right: int = 0
    pad_id: int = 0
    pad_token: str = ""
    pad_type_id: int = 0
    overflowing: tuple[Encoding, ...] = ()

    def padded(self, length: int, side: str, pad_id: int, pad_token: str, pad_type_id: int) -> Encoding:
        """Returns the same sequence with padding tokens on `side`, so that it has `length` tokens; also its windows."""
        windows = tuple(window.padded(length, side, pad_id, pad_token, pad_type_id) for window in self.overflowing)
        count = max(0, length - len(self))
        left, right = (count, 0) if side == "left" else (0, count)
        padding = {"pad_id": pad_id, "pad_token": pad_token, "pad_type_id": pad_type_id}
        return replace(self, left=left, right=right, overflowing=windows, **cast(Any, padding))

    def _view(self, column: list[T], pad: T) -> list[T]:
        kept = column if self.kept is None else [column[index] for index in self.kept]
        return [pad] * self.left + kept + [pad] * self.right

    def __len__(self) -> int:
        return self.left + self.right + (len(self.columns) if self.kept is None else len(self.kept))

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        return self._view(self.columns.ids, self.pad_id)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary's spelling of each token."""
        return self._view(self.columns.tokens, self.pad_token)

    @property
    def type_ids(self) -> list[int]:
        """0 for the first text of a pair, 1 for the second, and `pad_type_id` for padding."""
        return self._view(self.columns.type_ids, self.pad_type_id)

    @property
    def special_tokens_mask(self) -> list[int]:
        """1 for special tokens that were added to the text, and for padding."""
        return self._view(self.columns.special_tokens_mask, 1)

    @property
    def attention_mask(self) -> list[int]:
        """0 for padding, 1 for other tokens."""
        return [0] * self.left + [1] * (len(self) - self.left - self.right) + [0] * self.right

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 for tokens of the first text, 1 for tokens of the second, None for special tokens and padding."""
        return self._view(self.columns.sequence_ids, None)

    @property
    def word_ids(self) -> list[int | None]:
        """For each token, the index of its word, as the pre-tokenizer splits the text."""
        return self._view(self.columns.word_ids, None)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters of the text that each token covers; (0, 0) for special tokens and padding."""
        return self._view(self.columns.offsets, (0, 0))

    @property
    def words(self) -> list[int | None]:
        """The same as `word_ids`."""
        return self.word_ids

    @property
    def n_sequences(self) -> int:
        """2 for a pair, else 1."""
        return 2 if 1 in self.columns.sequence_ids else 1

    def char_to_token(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """The index of the token that covers a character, or None."""
        for index, (sequence, (start, end)) in enumerate(zip(self.sequence_ids, self.offsets, strict=True)):
            if sequence == sequence_index and start <= char_pos < end:
                return index
        return None

    def char_to_word(self, char_pos: int, sequence_index: int = 0) -> int | None:
        """The index of the word that contains a character, or None."""
        token = self.char_to_token(char_pos, sequence_index)
        return None if token is None else self.word_ids[token]

    def token_to_sequence(self, token_index: int) -> int | None:
        """0 or 1: the text that contains a token, or None."""
        return self.sequence_ids[token_index]

    def token_to_chars(self, token_index: int) -> CharSpan | None:
        """The characters of a token, or None if it is special or padding."""
        return None if self.sequence_ids[token_index] is None else CharSpan(*self.offsets[token_index])

    def token_to_word(self, token_index: int) -> int | None:
        """The index of the word of a token, or None."""
        return self.word_ids[token_index]

    def word_to_tokens(self, word_index: int, sequence_index: int = 0) -> TokenSpan | None:
        """The tokens of a word, or None."""
        pairs = zip(self.sequence_ids, self.word_ids, strict=True)
        matches = [index for index, pair in enumerate(pairs) if pair == (sequence_index, word_index)]
        return TokenSpan(matches[0], matches[-1] + 1) if matches else None

    def word_to_chars(self, word_index: int, sequence_index: int = 0) -> CharSpan | None:
        """The characters of a word, or None."""
        tokens = self.word_to_tokens(word_index, sequence_index)
        return None if tokens is None else CharSpan(self.offsets[tokens.start][0], self.offsets[tokens.end - 1][1])
