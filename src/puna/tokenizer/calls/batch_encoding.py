"""`BatchEncoding`: the dictionary of columns that a call of a tokenizer returns, and the positions of its tokens."""

from __future__ import annotations

import logging
import warnings
from collections import UserDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from puna.errors import MissingExtraError, TokenizerError, show
from puna.tokenizer.calls.encoding import CharSpan, Encoding, TokenSpan


class BatchEncoding(UserDict[str, Any]):
    """A dictionary of columns (`input_ids`, `attention_mask`, ...) whose keys are also attributes.

    Args:
        data: the columns.
        encoding: the sequence or sequences that the columns contain; only the fast tokenizer provides them.
        tensor_type: "np" or "pt" to convert the columns immediately.
        prepend_batch_axis: whether to add a leading batch axis before converting.
        n_sequences: 1 for texts, 2 for pairs; by default, that of the first sequence.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data)
        self._encodings = [encoding] if isinstance(encoding, Encoding) else None if encoding is None else list(encoding)
        self._n_sequences = n_sequences
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

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "encodings": self._encodings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data, self._encodings, self._n_sequences = state["data"], state["encodings"], None

    def keys(self) -> Any:
        """The names of the columns."""
        return self.data.keys()

    def values(self) -> Any:
        """The columns."""
        return self.data.values()

    def items(self) -> Any:
        """Names and columns."""
        return self.data.items()

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
        if self._n_sequences is None and self._encodings:
            return self._encodings[0].n_sequences
        return self._n_sequences

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

    def words(self, batch_index: int = 0) -> list[int | None]:
        """The same as `word_ids`, under a name that transformers deprecated."""
        warnings.warn("BatchEncoding.words() is deprecated; use word_ids()", FutureWarning, stacklevel=2)
        return self.word_ids(batch_index)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the first text, 1 for tokens of the second, None for special tokens and padding."""
        return self._sequence(batch_index, "sequence_ids").sequence_ids

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The index of the token that covers a character; pass `(char)` for batch item 0, or `(batch, char)`."""
        sequence, char = self._sequence_and_index(batch_or_char_index, char_index, "char_to_token")
        return sequence.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The index of the word that contains a character; pass `(char)` for batch item 0, or `(batch, char)`."""
        sequence, char = self._sequence_and_index(batch_or_char_index, char_index, "char_to_word")
        return sequence.char_to_word(char, sequence_index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token, None if special; pass `(token)` for batch item 0, or `(batch, token)`."""
        sequence, token = self._sequence_and_index(batch_or_token_index, token_index, "token_to_chars")
        return sequence.token_to_chars(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The index of the word of a token; pass `(token)` for batch item 0, or `(batch, token)`."""
        sequence, token = self._sequence_and_index(batch_or_token_index, token_index, "token_to_word")
        return sequence.token_to_word(token)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 or 1: the text that contains a token; pass `(token)` for batch item 0, or `(batch, token)`."""
        sequence, token = self._sequence_and_index(batch_or_token_index, token_index, "token_to_sequence")
        return sequence.token_to_sequence(token)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; pass `(word)` for batch item 0, or `(batch, word)`."""
        sequence, word = self._sequence_and_index(batch_or_word_index, word_index, "word_to_tokens")
        return sequence.word_to_tokens(word, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word; pass `(word)` for batch item 0, or `(batch, word)`."""
        sequence, word = self._sequence_and_index(batch_or_word_index, word_index, "word_to_chars")
        return sequence.word_to_chars(word, sequence_index)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Converts the columns to NumPy arrays ("np") or PyTorch tensors ("pt"), in place.

        Integers become int64. Columns that are tensors already do not change.
        """
        if tensor_type is not None:
            for key, value in self.data.items():
                self.data[key] = _tensor(key, value, tensor_type, prepend_batch_axis)
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> BatchEncoding:
        """Moves the tensors to a PyTorch device, in place; other columns do not change.

        Raises:
            TokenizerError: no column is a tensor.
        """
        if not isinstance(device, (str, int)) and type(device).__name__ != "device":
            logging.getLogger("puna.tokenizer").warning(
                "BatchEncoding.to(%s): this is not a device, so nothing is changed", device
            )
            return self
        options = {"non_blocking": True} if non_blocking else {}
        tensors = {key: value.to(device, **options) for key, value in self.data.items() if hasattr(value, "to")}
        if self.data and not tensors:
            key, value = next(iter(self.data.items()))
            raise TokenizerError(
                f"{key} is a {type(value).__name__}, which has no device; call with return_tensors='pt'"
            )
        self.data |= tensors
        return self


def _tensor(key: str, value: Any, tensor_type: str, prepend_axis: bool) -> Any:
    """Converts a column to an array or a tensor.

    Raises:
        TokenizerError: the sequences differ in length, or `tensor_type` is unknown.
    """
    if tensor_type not in ("np", "pt"):
        raise TokenizerError(f"return_tensors={show(tensor_type)}; choose 'np' for NumPy or 'pt' for PyTorch")
    is_tensor = hasattr(value, "to") if tensor_type == "pt" else isinstance(value, np.ndarray)
    if is_tensor:
        return value[None] if prepend_axis else value
    rows = [value] if prepend_axis else value
    array = _array(key, rows, allow_ragged=tensor_type == "np")
    if tensor_type == "np":
        return array
    try:
        import torch
    except ModuleNotFoundError as exc:
        raise MissingExtraError("return_tensors='pt' needs PyTorch: pip install 'puna[torch]'") from exc
    plain_floats = array.dtype == np.float64 and not hasattr(next(iter(rows), None), "dtype")
    return torch.from_numpy(array.astype(np.float32) if plain_floats else array)


def _array(key: str, rows: Any, allow_ragged: bool) -> np.ndarray[Any, Any]:
    """Returns a column as an array; like transformers, as an array of objects if its rows differ in length."""
    if allow_ragged and len({len(row) for row in rows if isinstance(row, (list, tuple, np.ndarray))}) > 1:
        ragged = np.empty(len(rows), dtype=object)
        ragged[:] = [np.asarray(row) for row in rows]
        return ragged
    try:
        array = np.asarray(rows)
    except ValueError:
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "iufb":
        raise TokenizerError(
            f"{key} cannot be a tensor: its rows differ in length or are not numbers; call with padding=True or "
            "truncation=True"
        )
    is_integer = array.dtype.kind in "iu" or not array.size
    return array.astype(np.int64) if is_integer else array
