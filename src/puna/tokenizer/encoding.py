"""`Input` (texts to encode), `Encoding` (one encoded sequence) and `BatchEncoding` (a dictionary of columns).

Truncation and padding do not copy: an `Encoding` refers to the columns from `tokenizers` or SentencePiece, and
records the indexes of the tokens that truncation kept.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from puna.errors import MissingExtraError, TokenizerError, show

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")

Columns: TypeAlias = "tokenizers.Encoding | SlowColumns"
"""One encoded text or pair, before truncation and padding."""

Text: TypeAlias = str | Sequence[str]
"""One text; a sequence is a text that is already split into words."""


@dataclass(frozen=True)
class Input:
    """A text or a pair, and how to encode it."""

    text: Text
    pair: Text | None
    add_special_tokens: bool
    split_special_tokens: bool


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
    """

    ids: list[int]
    type_ids: list[int]
    special_tokens_mask: list[int]
    first_length: int
    token_of: Callable[[int], str]

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
    """One sequence: its `Columns`, the indexes of the kept tokens (None: all), and the padding on each side."""

    columns: Columns
    kept: tuple[int, ...] | None = None
    left: int = 0
    right: int = 0
    pad_id: int = 0
    pad_token: str = ""

    def padded(self, count: int, side: str, pad_id: int, pad_token: str) -> Encoding:
        """Returns the same sequence with `count` padding tokens on `side`."""
        left, right = (count, 0) if side == "left" else (0, count)
        return replace(self, left=left, right=right, pad_id=pad_id, pad_token=pad_token)

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
        """0 for the first text of a pair and for padding, 1 for the second."""
        return self._view(self.columns.type_ids, 0)

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
    def n_sequences(self) -> int:
        """2 for a pair, else 1."""
        return 2 if 1 in self.columns.sequence_ids else 1

    def char_to_token(self, char_index: int, sequence_index: int = 0) -> int | None:
        """The index of the token that covers a character, or None."""
        for index, (sequence, (start, end)) in enumerate(zip(self.sequence_ids, self.offsets, strict=True)):
            if sequence == sequence_index and start <= char_index < end:
                return index
        return None

    def word_to_tokens(self, word_index: int, sequence_index: int = 0) -> TokenSpan | None:
        """The tokens of a word, or None."""
        pairs = zip(self.sequence_ids, self.word_ids, strict=True)
        matches = [index for index, pair in enumerate(pairs) if pair == (sequence_index, word_index)]
        return TokenSpan(matches[0], matches[-1] + 1) if matches else None


class BatchEncoding(UserDict[str, Any]):
    """A dictionary of columns (`input_ids`, `attention_mask`, ...) whose keys are also attributes.

    Args:
        data: the columns.
        encodings: the sequences that the columns contain; only the fast tokenizer provides them.
        tensor_type: "np" or "pt" to convert the columns immediately.
        prepend_batch_axis: whether to add a leading batch axis before converting.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
    ) -> None:
        super().__init__(data)
        self._encodings = None if encodings is None else list(encodings)
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, item: str | int | slice) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        raise KeyError(f"{item!r}: only encodings of the fast tokenizer have an index; use a key of {list(self.data)}")

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})  # absent while unpickling
        if name in data:
            return data[name]
        raise AttributeError(f"no column {name!r}; the columns are {sorted(data)}")

    @property
    def is_fast(self) -> bool:
        """Whether the fast tokenizer returned this encoding."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[Encoding] | None:
        """The sequences; None if the slow tokenizer returned this encoding."""
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs, None if unknown."""
        return self._encodings[0].n_sequences if self._encodings else None

    def _sequence(self, batch_index: int, method: str) -> Encoding:
        if self._encodings is None:
            raise TokenizerError(f"{method}() needs the fast tokenizer; load with LlamaTokenizerFast or AutoTokenizer")
        return self._encodings[batch_index]

    def _sequence_and_index(self, first: int, second: int | None, method: str) -> tuple[Encoding, int]:
        """Returns the sequence and the index for a method's arguments: `(index)` in item 0, or `(batch, index)`."""
        return self._sequence(0 if second is None else first, method), first if second is None else second

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The vocabulary's spelling of each token."""
        return self._sequence(batch_index, "tokens").tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token, the index of its word, as the pre-tokenizer splits the text."""
        return self._sequence(batch_index, "word_ids").word_ids

    words = word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the first text, 1 for tokens of the second, None for special tokens and padding."""
        return self._sequence(batch_index, "sequence_ids").sequence_ids

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The index of the token that covers a character; pass `(char)` for batch item 0, or `(batch, char)`."""
        sequence, char = self._sequence_and_index(batch_or_char_index, char_index, "char_to_token")
        return sequence.char_to_token(char, sequence_index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token, None if special; pass `(token)` for batch item 0, or `(batch, token)`."""
        sequence, token = self._sequence_and_index(batch_or_token_index, token_index, "token_to_chars")
        return CharSpan(*sequence.offsets[token]) if sequence.sequence_ids[token] is not None else None

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The index of the word of a token; pass `(token)` for batch item 0, or `(batch, token)`."""
        sequence, token = self._sequence_and_index(batch_or_token_index, token_index, "token_to_word")
        return sequence.word_ids[token]

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 or 1: the text that contains a token; pass `(token)` for batch item 0, or `(batch, token)`."""
        sequence, token = self._sequence_and_index(batch_or_token_index, token_index, "token_to_sequence")
        return sequence.sequence_ids[token]

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; pass `(word)` for batch item 0, or `(batch, word)`."""
        sequence, word = self._sequence_and_index(batch_or_word_index, word_index, "word_to_tokens")
        return sequence.word_to_tokens(word, sequence_index)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Converts the columns to int64 arrays ("np") or PyTorch tensors ("pt"), in place."""
        if tensor_type is not None:
            for key, value in self.data.items():
                self.data[key] = _tensor(key, [value] if prepend_batch_axis else value, tensor_type)
        return self

    def to(self, device: Any) -> BatchEncoding:
        """Moves the tensors to a PyTorch device, in place."""
        moved = {}
        for key, value in self.data.items():
            if isinstance(value, (list, int, np.ndarray)):
                raise TokenizerError(
                    f"{key} is a {type(value).__name__}, which has no device; call with return_tensors='pt'"
                )
            moved[key] = value.to(device)
        self.data = moved
        return self


def _tensor(key: str, value: Any, tensor_type: str) -> Any:
    """Converts a column to an array or a tensor.

    Raises:
        TokenizerError: the sequences differ in length, or `tensor_type` is unknown.
    """
    if tensor_type not in ("np", "pt"):
        raise TokenizerError(f"return_tensors={show(tensor_type)}; choose 'np' for NumPy or 'pt' for PyTorch")
    try:
        array = np.asarray(value, dtype=np.int64)
    except ValueError as exc:
        raise TokenizerError(
            f"{key} cannot be a tensor: its sequences differ in length; call with padding=True or truncation=True"
        ) from exc
    if tensor_type == "np":
        return array
    try:
        import torch
    except ModuleNotFoundError as exc:
        raise MissingExtraError("return_tensors='pt' needs PyTorch: pip install 'puna[torch]'") from exc
    return torch.from_numpy(array)
