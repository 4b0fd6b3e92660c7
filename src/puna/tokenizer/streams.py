"""Decoding of complete sequences (`decode`) and token by token (`StreamDecoder`, based on `TextStream`).

Each tokenizer creates a `TextStream` with its decoding rules. The texts that a stream returns, joined, equal the
decoded text of all ids. A stream holds text back only while a later token can still change the text.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from puna.tokenizer.arguments import as_ids
from puna.tokenizer.files.byte_level import CHARACTER_TO_BYTE
from puna.tokenizer.special import AnyTokenizer

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder


class TextStream(ABC):
    """Decodes ids one at a time."""

    @abstractmethod
    def push(self, index: int) -> str:
        """Adds an id; returns the new text that no later id can change."""

    @abstractmethod
    def finish(self) -> str:
        """Ends the sequence; returns the remaining text."""


class StreamingTokenizer(Protocol):
    """The method of a tokenizer that `StreamDecoder` needs."""

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """Returns a new stream that decodes as `decode(ids, skip_special_tokens)` does."""
        ...


class StreamDecoder:
    """Decodes ids as they arrive: the texts of `push` and `finish`, joined, equal `decode(ids, skip_special_tokens)`.

    No returned text ends inside a character. U+FFFD represents only bytes that no later byte can make valid UTF-8.
    """

    def __init__(self, tokenizer: StreamingTokenizer, skip_special_tokens: bool = True) -> None:
        self._stream = tokenizer.text_stream(skip_special_tokens)

    def push(self, index: int) -> str:
        """Adds the next id; returns the text that no later id can change, "" while a character is incomplete.

        Raises:
            TokenizerError: the vocabulary has no such id.
        """
        return self._stream.push(index)

    def finish(self) -> str:
        """Ends the sequence; returns the text that was held back."""
        return self._stream.finish()


@dataclass
class _HoldStream(TextStream):
    """Holds all ids until the end, for decoders in tokenizer.json that may need the complete sequence."""

    decode: Callable[[list[int]], str]
    ids: list[int] = field(default_factory=list)

    def push(self, index: int) -> str:
        self.ids.append(index)
        return ""

    def finish(self) -> str:
        return self.decode(self.ids)


class _BytesStream(TextStream):
    """The ByteLevel decoder: tokens spell UTF-8 bytes. Invalid bytes become U+FFFD as in Unicode 15, section 3.9."""

    def __init__(self, token_of: Callable[[int], str | None]) -> None:
        self._token_of = token_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        token = self._token_of(index) or ""
        try:
            data = bytes([CHARACTER_TO_BYTE[character] for character in token])
        except KeyError:  # characters outside the byte alphabet: an added token, which is plain text
            data = token.encode()
        return self._utf8.decode(data)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@dataclass
class _ByteRunStream(TextStream):
    """The decoder sequence Replace, ByteFallback, Fuse, Strip of `tokenizers`: text tokens and runs of byte tokens.

    If a run is not valid UTF-8, each of its bytes becomes U+FFFD. Runs are therefore held back until they end.

    Attributes:
        token_of: as in `stream_for`.
        replacements: texts to replace in a token, and their replacements.
        has_bytes: whether tokens such as <0x0A> are bytes.
        strip: number of spaces to remove at the start of the text.
    """

    token_of: Callable[[int], str | None]
    replacements: list[tuple[str, str]]
    has_bytes: bool
    strip: int
    run: bytearray = field(default_factory=bytearray)

    def push(self, index: int) -> str:
        token = self.token_of(index)
        if token is None:
            return ""
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            with suppress(ValueError):
                self.run.append(int(token[3:5], 16))
                return ""
        return self._stripped(self._end_run() + token)

    def finish(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        try:
            text = self.run.decode()
        except UnicodeDecodeError:
            text = "\ufffd" * len(self.run)
        self.run.clear()
        return text

    def _stripped(self, text: str) -> str:
        while self.strip and text:
            if text[0] != " ":
                self.strip = 0
                break
            self.strip -= 1
            text = text[1:]
        return text


class CleanUpStream(TextStream):
    """Applies `clean_up` to another stream."""

    _PAIRS_IN_ARTEFACTS = frozenset(("n'", "'t", "'m", "'s", "'v", "ve", "'r", "re"))
    """Adjacent characters other than spaces in `_ARTEFACTS`, such as "n'" in " n't": never split there."""

    def __init__(self, inner: TextStream) -> None:
        self._inner = inner
        self._held = ""

    def push(self, index: int) -> str:
        """Returns the text up to the last position that cannot be inside an artefact."""
        text = self._held + self._inner.push(index)
        for at in range(len(text) - 1, 0, -1):
            pair = text[at - 1 : at + 1]
            if " " not in pair and pair not in self._PAIRS_IN_ARTEFACTS:
                self._held = text[at:]
                return clean_up(text[:at])
        self._held = text
        return ""

    def finish(self) -> str:
        """Returns the remaining text, cleaned up."""
        return clean_up(self._held + self._inner.finish())


_ARTEFACTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up(text: str) -> str:
    """`clean_up_tokenization` of transformers: removes spaces before punctuation and English contractions."""
    for artefact, clean in _ARTEFACTS:
        text = text.replace(artefact, clean)
    return text


def decode(
    self: AnyTokenizer,
    token_ids: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
    spaces_between_special_tokens: bool = True,
) -> str:
    """Returns the text of one sequence of ids.

    Args:
        token_ids: an id, a list, an array or a tensor.
        skip_special_tokens: leave special tokens out.
        clean_up_tokenization_spaces: None uses the tokenizer's setting.
        spaces_between_special_tokens: `LlamaTokenizer` only: whether to put spaces around added tokens.

    Raises:
        TokenizerError: the vocabulary has no such id.
    """
    text = self._decode(as_ids(token_ids), skip_special_tokens, spaces_between_special_tokens)
    clean = self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else False
    return clean_up(text) if clean or clean_up_tokenization_spaces else text


def batch_decode(
    self: AnyTokenizer,
    sequences: Any,
    skip_special_tokens: bool = False,
    clean_up_tokenization_spaces: bool | None = None,
) -> list[str]:
    """Returns the text of each sequence of ids."""
    return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]


def stream_for(
    decoder: Decoder | None, token_of: Callable[[int], str | None], decode: Callable[[list[int]], str]
) -> TextStream:
    """Returns a stream that decodes as a decoder of `tokenizers` does; the decoder's JSON form shows its steps.

    Args:
        token_of: returns the token of an id, or None to leave it out; raises for an unknown id.
        decode: decodes a complete sequence; used if no stream implements the decoder.
    """
    state = None if decoder is None else json.loads(decoder.__getstate__())
    steps = state["decoders"] if state and state["type"] == "Sequence" else [state] if state else []
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _BytesStream(token_of)
    parts = _replacements_and_strip(steps)
    return _HoldStream(decode) if parts is None else _ByteRunStream(token_of, *parts)


def _replacements_and_strip(steps: list[dict[str, Any]]) -> tuple[list[tuple[str, str]], bool, int] | None:
    """Reads [Replace...] [ByteFallback] [Fuse [Strip]], with ByteFallback or Fuse; None for any other sequence."""
    rest = list(steps)
    replacements = []
    while rest and rest[0]["type"] == "Replace" and "String" in rest[0]["pattern"]:
        replacements.append((rest[0]["pattern"]["String"], rest[0]["content"]))
        del rest[0]
    has_bytes = bool(rest) and rest[0]["type"] == "ByteFallback"
    kinds = [step["type"] for step in rest[has_bytes:]]
    strip = 0
    if kinds == ["Fuse", "Strip"]:
        last = rest[-1]
        if last["content"] != " " or last["stop"] != 0:
            return None
        strip = last["start"]
    elif kinds != ["Fuse"] and not (kinds == [] and has_bytes):
        return None
    return replacements, has_bytes, strip
