"""Decoding token by token: what each id adds to the text, such that the pieces joined are the whole decode.

A tokenizer hands out a `TextStream` for its own rules; `StreamDecoder` drives one. A piece of text is held back only
while a later token can still change it.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol


class TextStream(ABC):
    """Turns ids into text, one at a time."""

    @abstractmethod
    def push(self, index: int) -> str:
        """The text that is certain now and was not before."""

    @abstractmethod
    def finish(self) -> str:
        """The rest."""


class StreamingTokenizer(Protocol):
    """What the decoder needs of a tokenizer."""

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """A new stream of this tokenizer's default decoding."""
        ...


class StreamDecoder:
    """Decodes ids as they come: joined, `push(id)` of all and `finish()` are `tokenizer.decode(ids)`.

    No piece ends inside a character. U+FFFD stands only where the bytes are no UTF-8 whatever follows.
    """

    def __init__(self, tokenizer: StreamingTokenizer, skip_special_tokens: bool = True) -> None:
        self._stream = tokenizer.text_stream(skip_special_tokens)

    def push(self, index: int) -> str:
        """Takes the next id; returns the text that became certain, often empty for a part of a character.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        return self._stream.push(index)

    def finish(self) -> str:
        """Ends the sequence; returns the text that was still held back."""
        return self._stream.finish()


class HoldStream(TextStream):
    """Holds everything: for tokenizer.json decoders whose steps are not known to work token by token."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []

    def push(self, index: int) -> str:
        """Nothing yet."""
        self._ids.append(index)
        return ""

    def finish(self) -> str:
        """The whole decode."""
        return self._decode(self._ids)


class BytesStream(TextStream):
    """Ids stand for bytes of UTF-8: the ByteLevel decoder. Wrong bytes become U+FFFD as Unicode 15, 3.9 recommends."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """The characters that this id's bytes complete."""
        return self._utf8.decode(self._bytes_of(index))

    def finish(self) -> str:
        """U+FFFD for a character cut short."""
        return self._utf8.decode(b"", final=True)


class ByteRunStream(TextStream):
    """Pieces of text with runs of byte tokens between: the decoder Replace, ByteFallback, Fuse, Strip of `tokenizers`.

    A run that is no UTF-8 as a whole becomes one U+FFFD a byte, so a run is certain only when it ends.

    Args:
        part_of: the text or the byte of an id; None for one that is skipped.
        strip: how many leading spaces of the whole text go.
    """

    def __init__(self, part_of: Callable[[int], str | int | None], strip: int) -> None:
        self._part_of = part_of
        self._strip = strip
        self._run = bytearray()

    def push(self, index: int) -> str:
        """A run of bytes that ended here, then this id's text."""
        part = self._part_of(index)
        if part is None:
            return ""
        if isinstance(part, int):
            self._run.append(part)
            return ""
        return self._stripped(self._end_run() + part)

    def finish(self) -> str:
        """The last run of bytes."""
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = "\ufffd" * len(self._run)
        self._run.clear()
        return text

    def _stripped(self, text: str) -> str:
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
                break
            self._strip -= 1
            text = text[1:]
        return text


class CleanUpStream(TextStream):
    """Another stream with the tokenization artefacts of `clean_up` removed."""

    _SPLIT = frozenset(("n'", "'t", "'m", "'s", "'v", "ve", "'r", "re"))
    """The pairs of characters, neither a space, that are inside an artefact."""

    def __init__(self, inner: TextStream) -> None:
        self._inner = inner
        self._held = ""

    def push(self, index: int) -> str:
        """The text up to the last place that no artefact can span."""
        text = self._held + self._inner.push(index)
        for at in range(len(text) - 1, 0, -1):
            pair = text[at - 1 : at + 1]
            if " " not in pair and pair not in self._SPLIT:
                self._held = text[at:]
                return clean_up(text[:at])
        self._held = text
        return ""

    def finish(self) -> str:
        """The rest, cleaned."""
        return clean_up(self._held + self._inner.finish())


_ARTEFACTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up(text: str) -> str:
    """`clean_up_tokenization` of transformers: takes out spaces before punctuation and English contractions."""
    for artefact, clean in _ARTEFACTS:
        text = text.replace(artefact, clean)
    return text
