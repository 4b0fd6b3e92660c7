"""Recognises stop strings in ids: whether the last token of a row completes one of them.

Tokens and strings are compared as bytes, so that a character may consist of several byte tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from puna.errors import RequestError
from puna.tokenizer.files.byte_level import CHARACTER_TO_BYTE

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_PREFIX = "abcdef"
"""Text in front of a token, because the first token of a text may lose its leading space."""


class StopStrings:
    """The stop strings of a tokenizer.

    Args:
        tokenizer: a tokenizer of this package or of transformers.
        strings: the stop strings.

    Attributes:
        window: the number of last tokens that must be examined.

    Raises:
        RequestError: a string is empty, or no token of the vocabulary can end any of the strings.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str]) -> None:
        if not strings or not all(isinstance(string, str) and string for string in strings):
            raise RequestError(f"stop_strings is {list(strings)!r}; it must contain strings that are not empty")
        self._strings = [string.encode() for string in strings]
        self.window = max(map(len, self._strings))
        self._texts = TokenTexts(tokenizer)
        if not self._texts.has_bytes and not any(self._can_end(text) for text in self._texts.all()):
            raise RequestError(
                f"no token of the tokenizer can end one of the stop_strings {list(strings)!r}; "
                "their characters are not in its vocabulary"
            )

    def ends(self, ids: Sequence[int]) -> bool:
        """Returns whether the last id completes a stop string."""
        text, last = b"", 0
        for position, index in enumerate(reversed(ids)):
            token = self._texts.of(index)
            if token is None:
                break
            text = token + text
            last = len(token) if position == 0 else last
        return any(_completes(text, last, string) for string in self._strings)

    def _can_end(self, token: bytes) -> bool:
        """Returns whether a stop string can end in the token."""
        return any(
            string in token or any(string.endswith(token[:n]) for n in range(1, len(token) + 1))
            for string in self._strings
        )


def _completes(text: bytes, last: int, string: bytes) -> bool:
    """Returns whether `string` is in `text` and ends within its last `last` bytes."""
    return last > 0 and text.find(string, max(0, len(text) - last - len(string) + 1)) >= 0


class TokenTexts:
    """The bytes that each token adds to a text.

    Attributes:
        has_bytes: whether the vocabulary can spell every byte.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        self._is_byte_level = _is_byte_level(tokenizer)
        self.has_bytes = self._is_byte_level or all(f"<0x{byte:02X}>" in tokenizer.get_vocab() for byte in (0, 255))
        self._before = tokenizer.convert_ids_to_tokens(tokenizer(_PREFIX, add_special_tokens=False)["input_ids"])
        self._texts: dict[int, bytes] = {}

    def of(self, index: int) -> bytes | None:
        """Returns the bytes of a token; None if the vocabulary has no such id."""
        if index not in self._texts:
            token = self._tokens.get(index)
            if token is None:
                return None
            self._texts[index] = self._decode(token)
        return self._texts[index]

    def all(self) -> Iterable[bytes]:
        """Yields the bytes of all tokens."""
        return (text for index in self._tokens if (text := self.of(index)) is not None)

    def _decode(self, token: str) -> bytes:
        if self._is_byte_level and all(character in CHARACTER_TO_BYTE for character in token):
            return bytes(CHARACTER_TO_BYTE[character] for character in token)
        if not self._is_byte_level and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        text: str = self._tokenizer.convert_tokens_to_string([*self._before, token])
        return text[text.index(_PREFIX) + len(_PREFIX) :].encode()


def _is_byte_level(tokenizer: Any) -> bool:
    """Returns whether the tokens are spelled with the alphabet of byte-level BPE."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    state = b"" if decoder is None else decoder.__getstate__()
    state = state.encode() if isinstance(state, str) else state
    return b'"ByteLevel"' in state and b'"ByteFallback"' not in state
