"""Decoding token by token (`StreamDecoder`, based on `TextStream`).

Each tokenizer creates a `TextStream` with its decoding rules. The texts that a stream returns, joined, equal the
decoded text of all ids. A stream holds text back only while a later token can still change the text.

`decoder_stream` returns the stream of a decoder of `tokenizers`, which itself decodes complete lists of tokens: each
step turns a list of texts into a new list, and the last list is joined. The rules of the steps are those of
tokenizers/src/decoders in version 0.23.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from puna.files.tokenizer_json import library_errors
from puna.tokenizer.arguments import as_ids
from puna.tokenizer.files.byte_level import CHARACTER_TO_BYTE

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder


class TextStream(ABC):
    """Decodes ids one at a time."""

    @abstractmethod
    def push(self, index: int) -> str:
        """Adds an id; returns the new text that no later id can change."""

    @abstractmethod
    def rest(self) -> str:
        """Returns the text that is held back, as if the sequence ended here; the stream can continue."""


class StreamingTokenizer(Protocol):
    """The method of a tokenizer that `StreamDecoder` needs."""

    def text_stream(self, skip_special_tokens: bool) -> TextStream:
        """Returns a new stream that decodes as `decode(ids, skip_special_tokens)` does, without clean-up."""
        ...


class StreamDecoder:
    """Decodes ids as they arrive: the texts of `push` and `finish`, joined, equal the decoded text of all ids.

    The text is that of `decode(ids, skip_special_tokens, clean_up_tokenization_spaces=False)`. No returned text ends
    inside a character. U+FFFD represents only bytes that no later byte can make valid UTF-8.

    Args:
        prompt_ids: ids whose text is not returned. The decoder returns `decode(prompt_ids + ids)` without its longest
            common prefix with `decode(prompt_ids)`. This is the text after `decode(prompt_ids)`, unless the ids change
            the end of the prompt's text: an incomplete character belongs to the ids that complete it; a run of byte
            tokens may become invalid; and "hf-legacy" inserts a space before a segment if special tokens are shown.
    """

    def __init__(
        self, tokenizer: StreamingTokenizer, skip_special_tokens: bool = True, prompt_ids: Iterable[int] = ()
    ) -> None:
        self._stream = tokenizer.text_stream(skip_special_tokens)
        pushed = [self._stream.push(index) for index in prompt_ids]
        self._prompt = self._stream.rest() if pushed else ""  # text of the prompt that the stream has not yet returned

    def push(self, index: int) -> str:
        """Adds the next id; returns the text that no later id can change, "" while a character is incomplete.

        Raises:
            TokenizerError: `index` is not an integer, or the vocabulary has no such id.
        """
        text = self._stream.push(as_ids([index])[0])
        if not self._prompt:
            return text
        shared = _shared(text, self._prompt)
        self._prompt = self._prompt[shared:] if shared == len(text) else ""
        return text[shared:]

    def finish(self) -> str:
        """Returns the text that is held back, as if the sequence ended here."""
        text = self._stream.rest()
        return text[_shared(text, self._prompt) :]


def _shared(first: str, second: str) -> int:
    """Returns the length of the longest common prefix."""
    differences = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))


def overlap(text: str, word: str) -> int:
    """Returns the length of the longest suffix of `text` that is a proper prefix of `word`."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)


_ARTEFACTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up(text: str) -> str:
    """`clean_up_tokenization` of transformers: removes spaces before punctuation and English contractions."""
    for artefact, clean in _ARTEFACTS:
        text = text.replace(artefact, clean)
    return text


def decoder_stream(
    decoder: Decoder | None, token_of: Callable[[int], str | None], decode: Callable[[list[int]], str]
) -> TextStream:
    """Returns a stream that decodes as a decoder of `tokenizers` does; the decoder's JSON form shows its steps.

    Args:
        token_of: returns the token of an id, or None to leave it out; raises for an unknown id.
        decode: decodes a complete sequence; used if the decoder has a step that may need the complete sequence.
    """
    if decoder is None:
        return _StepStream(token_of, [_EachToken(" ".join)])
    steps = _steps(_flat(json.loads(decoder.__getstate__())))
    return _HoldStream(decode) if steps is None else _StepStream(token_of, steps)


class _Step(ABC):
    """One step of a decoder. Attributes are immutable values, so a copy is independent of the original step."""

    @abstractmethod
    def push(self, text: str) -> list[str]:
        """Adds a text; returns the resulting texts that no later text can change.

        The text is a token, or a part of the complete text if an earlier step joins the tokens.
        """

    @abstractmethod
    def finish(self) -> list[str]:
        """Ends the sequence; returns the remaining texts."""

    @property
    @abstractmethod
    def holds_text(self) -> bool:
        """Whether `finish` returns text."""


class _StepStream(TextStream):
    """Passes each token through the steps of a decoder."""

    def __init__(self, token_of: Callable[[int], str | None], steps: list[_Step]) -> None:
        self._token_of = token_of
        self._steps = steps

    def push(self, index: int) -> str:
        token = self._token_of(index)
        if token is None:
            return ""
        texts = [token]
        for step in self._steps:
            texts = [result for text in texts for result in step.push(text)]
        return "".join(texts)

    def rest(self) -> str:
        texts: list[str] = []
        if not any(step.holds_text for step in self._steps):  # usual after a token, and three times faster
            return ""
        for step in map(copy, self._steps):
            texts = [result for text in texts for result in step.push(text)] + step.finish()
        return "".join(texts)


@dataclass
class _HoldStream(TextStream):
    """Holds all ids until the end, for decoders that may need the complete sequence."""

    decode: Callable[[list[int]], str]
    ids: list[int] = field(default_factory=list)

    def push(self, index: int) -> str:
        self.ids.append(index)
        return ""

    def rest(self) -> str:
        return self.decode(self.ids)


@dataclass
class _EachToken(_Step):
    """A decoder that changes each token by itself; the first and the last token may have their own rules.

    Attributes:
        decode: decodes a list of tokens; an empty token before or after a token shows that it is not the first or last.
        last_differs: whether the last token has its own rule, so that a token is held until another follows.
    """

    decode: Callable[[list[str]], str]
    last_differs: bool = False
    before: tuple[str, ...] = ()
    held: str | None = None

    def push(self, text: str) -> list[str]:
        if not self.last_differs:
            return [self._decoded(text)]
        held, self.held = self.held, text
        return [] if held is None else [self._decoded(held, "")]

    @property
    def holds_text(self) -> bool:
        return self.held is not None

    def finish(self) -> list[str]:
        return [] if self.held is None else [self._decoded(self.held)]

    def _decoded(self, *tokens: str) -> str:
        text = self.decode([*self.before, *tokens])
        self.before = ("",)
        return text


_BYTE = re.compile(r"<0x(\+[0-9A-Fa-f]|[0-9A-Fa-f]{2})>")


@dataclass
class _ByteFallback(_Step):
    """ByteFallback: a run of tokens such as <0x0A> is UTF-8. If it is not valid, each of its bytes becomes U+FFFD.

    Runs are therefore held back until they end.
    """

    run: bytes = b""

    def push(self, text: str) -> list[str]:
        if match := _BYTE.fullmatch(text):
            self.run += bytes([int(match[1], 16)])
            return []
        return [*self.finish(), text]

    @property
    def holds_text(self) -> bool:
        return bool(self.run)

    def finish(self) -> list[str]:
        run, self.run = self.run, b""
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


@dataclass
class _ByteLevel(_Step):
    """ByteLevel: tokens spell UTF-8 bytes. Invalid bytes become U+FFFD as in Unicode 15, section 3.9."""

    held: bytes = b""

    def push(self, text: str) -> list[str]:
        try:
            data = bytes([CHARACTER_TO_BYTE[character] for character in text])
        except KeyError:  # characters outside the byte alphabet: an added token, which is plain text
            data = text.encode()
        data = self.held + data
        decoded, length = codecs.utf_8_decode(data, "replace", False)
        self.held = data[length:]
        return [decoded]

    @property
    def holds_text(self) -> bool:
        return bool(self.held)

    def finish(self) -> list[str]:
        return [self.held.decode("utf-8", "replace")]


@dataclass
class _StripText(_Step):
    """Strip, after the tokens are joined: removes up to `start` characters at the start and `stop` at the end."""

    content: str
    start: int
    stop: int
    held: str = ""

    def push(self, text: str) -> list[str]:
        while self.start and text:
            if text[0] != self.content:
                self.start = 0
                break
            self.start -= 1
            text = text[1:]
        text = self.held + text
        end = max(len(text.rstrip(self.content)), len(text) - self.stop)
        self.held = text[end:]
        return [text[:end]]

    @property
    def holds_text(self) -> bool:
        return False

    def finish(self) -> list[str]:
        return []


@dataclass
class _ReplaceText(_Step):
    """Replace, after the tokens are joined."""

    old: str
    new: str
    held: str = ""

    def push(self, text: str) -> list[str]:
        *before, last = (self.held + text).split(self.old)
        end = len(last) - overlap(last, self.old)
        self.held = last[end:]
        return [self.new.join([*before, last[:end]])]

    @property
    def holds_text(self) -> bool:
        return bool(self.held)

    def finish(self) -> list[str]:
        return [self.held]


def _flat(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the steps of a decoder in its JSON form; a sequence may contain sequences."""
    if state["type"] != "Sequence":
        yield state
        return
    for step in state["decoders"]:
        yield from _flat(step)


def _steps(states: Iterable[dict[str, Any]]) -> list[_Step] | None:
    """Returns the steps of a decoder; None if one of them cannot decode token by token, such as CTC."""
    steps: list[_Step] = []
    joined = False  # whether an earlier step has joined the tokens to one text
    for state in states:
        if state["type"] == "Fuse":
            joined = True
            continue
        step = _joined_step(state) if joined else _token_step(state)
        if step is None:
            return None
        steps.append(step)
        joined = joined or state["type"] == "ByteLevel"
    return steps


def _token_step(state: dict[str, Any]) -> _Step | None:
    kind = state["type"]
    if kind == "ByteLevel":
        return _ByteLevel()
    if kind == "ByteFallback":
        return _ByteFallback()
    if kind == "Strip":  # tokenizers 0.23 panics if `stop` exceeds the length of a token
        strip = _StripText(state["content"], state["start"], state["stop"])
        return _EachToken(lambda tokens: "".join(text for token in tokens for text in copy(strip).push(token)))
    if kind == "Replace" and (pattern := state["pattern"].get("String")):  # a call of the library takes 5 us
        return _EachToken(lambda tokens: "".join(tokens).replace(pattern, state["content"]))
    if kind in ("Replace", "Metaspace", "WordPiece", "BPEDecoder"):
        decode = library_errors("this tokenizer cannot decode the tokens")(_decoder(state).decode)
        return _EachToken(decode, last_differs=kind == "BPEDecoder")
    return None


def _joined_step(state: dict[str, Any]) -> _Step | None:
    if state["type"] == "Strip":
        return _StripText(state["content"], state["start"], state["stop"])
    if state["type"] == "Replace" and state["pattern"].get("String"):
        return _ReplaceText(state["pattern"]["String"], state["content"])
    return None


def _decoder(state: dict[str, Any]) -> Decoder:
    """Returns the decoder with this JSON form, which `tokenizers` can read only as part of a pipeline."""
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    decoder: Decoder = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "decoder": state})).decoder
    return decoder
