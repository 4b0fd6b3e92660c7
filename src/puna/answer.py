"""Texts built from the engine's events: `Answer` and `Completion`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from puna.engine import Event, FinishReason, Request, TokenLogprobs
from puna.errors import RequestError, show
from puna.tokenizer.streams import StreamDecoder, overlap

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


@dataclass(frozen=True, repr=False)
class Completion:
    """A complete answer. `str()` returns its text.

    Attributes:
        text: the generated text, without the prompt.
        ids: the generated token ids, without the end token.
        finish_reason: "stop" (an end token or a stop string) or "length".
        prompt_ids: the token ids of the prompt.
        prefill_seconds: time from the start of the first step to the first token.
        decode_seconds: time from the first token to the last.
        cached_tokens: number of prompt tokens that were found in the prefix cache and not read again.
        logprobs: the log-probabilities at each token of `ids`; None without the option `logprobs`.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return (
            f"Completion({self.text!r}, finish_reason={self.finish_reason!r}, {len(self.prompt_ids)} prompt tokens, "
            f"{len(self.ids)} answer tokens, {self.decode_tokens_per_second:.1f} tokens/s)"
        )

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read per second, without those found in the prefix cache."""
        read = len(self.prompt_ids) - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens generated per second after the first token; 0 for an answer of at most one token."""
        return max(0, len(self.ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Answer:
    """An answer that is being generated.

    Args:
        request: the request that is answered.
        tokenizer: decodes the ids.
        stops: strings that end the answer; they are not part of it. A special token in a string matches that token,
            although the text of the answer does not contain it.
        continues_prompt: whether the answer continues the prompt's text: a space between both is kept.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: LlamaTokenizer | LlamaTokenizerFast,
        stops: tuple[str, ...],
        *,
        continues_prompt: bool,
    ) -> None:
        self.request = request
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._stops = _Stops(stops, tokenizer)
        self._logprobs: list[TokenLogprobs] = []
        self._text: list[str] = []
        self._cached_tokens = 0
        self._next_piece = 0  # index of the first piece of `_text` that `take` has not returned
        self._pending = ""  # decoded text that may be the beginning of a stop string
        self._marks: list[tuple[int, str]] = []  # of special tokens: (position in _pending, mark)
        self._times: list[float] = []  # start of the first step, first token, last token; seconds
        self._decoder = StreamDecoder(tokenizer, True, request.prompt_ids if continues_prompt else ())

    @property
    def finished(self) -> bool:
        """Whether the answer is complete or has failed."""
        return self.finish_reason is not None or self.error is not None

    def take(self) -> list[str]:
        """Returns the pieces of text that became final since the last call."""
        start, self._next_piece = self._next_piece, len(self._text)
        return self._text[start : self._next_piece]

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds the event of a step that ran from `started` to `ended` (seconds), unless the answer has ended."""
        if self.finished:
            return
        if not self._times:
            self._times = [started, ended, ended]
        if not self.ids:
            self._times[1] = ended
        self._times[2] = ended
        self._cached_tokens += event.cached_tokens
        if event.token is not None:
            self.ids.append(event.token)
            if event.logprobs is not None:
                self._logprobs.append(event.logprobs)
            self._pending += self._decoder.push(event.token)
        mark = self._stops.mark(event.token if event.stop_id is None else event.stop_id)
        self.finish_reason, self.error = event.finish_reason, event.error
        held = self._decoder.finish() if mark or self.finished else ""
        if mark:
            self._marks.append((len(self._pending) + len(held), mark))
        if text := self._release(held):
            self._text.append(text)

    def completion(self) -> Completion:
        """Returns the complete answer, or raises the error that ended it.

        Raises:
            RequestError: the answer is not complete: its stream has not been read to the end, or was closed before.
        """
        if self.error is not None:
            raise self.error
        if self.finish_reason is None:
            raise RequestError(
                f"the answer is not complete (it has {len(self.ids)} tokens); read its stream to the end, and close "
                "it only afterwards"
            )
        started, first, last = self._times
        return Completion(
            "".join(self._text),
            tuple(self.ids),
            self.finish_reason,
            self.request.prompt_ids,
            first - started,
            last - first,
            cached_tokens=self._cached_tokens,
            logprobs=None if self.request.sampling.logprobs is None else tuple(self._logprobs),
        )

    def _release(self, held: str) -> str:
        """Removes and returns pending text before a stop string or the start of one. A stop string ends the answer.

        Args:
            held: text that follows the pending text if the answer ends here. It is searched after a special token,
                since no later token can change a stop string that ends with the special token.
        """
        text = self._pending + held
        shown = self._shown(text)
        ends = [index for index in (text.find(stop) for stop in self._stops.plain) if index >= 0]
        ends += [_visible(shown[:index]) for index in (shown.find(stop) for stop in self._stops.marked) if index >= 0]
        if ends:
            self.finish_reason = "stop"
            end = min(ends)
        elif self.finished:
            end = len(text)
        else:
            shown = self._shown(self._pending)
            kept = [overlap(self._pending, stop) for stop in self._stops.plain]
            kept += [_visible(shown[len(shown) - overlap(shown, stop) :]) for stop in self._stops.marked]
            end = len(self._pending) - max(kept, default=0)
        self._pending = self._pending[end:]
        marks = [(i - end, mark) for i, mark in self._marks if i >= end]
        old, new = marks[: -self._stops.longest], marks[-self._stops.longest :]
        # A stop string contains at most `longest` marks. Of the older ones, one in each position still separates text.
        self._marks = [(i, _OTHER_MARK) for i in dict.fromkeys(i for i, _ in old)] + new
        return text[:end]

    def _shown(self, text: str) -> str:
        """Returns the text with the marks of special tokens inserted."""
        parts, start = [], 0
        for index, mark in self._marks:
            if index <= len(text):
                parts += [text[start:index], mark]
                start = index
        return "".join([*parts, text[start:]])


def check_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the strings of the option `stop`: a string, several strings, or None.

    Raises:
        RequestError: a value is not a string, is empty, or is not valid Unicode.
    """
    values = () if stop is None else (stop,) if isinstance(stop, str) else stop
    stops = tuple(values) if isinstance(values, Iterable) and not isinstance(values, Mapping) else (None,)
    if not all(isinstance(text, str) and text and not any(map(_is_surrogate, text)) for text in stops):
        raise RequestError(
            f"stop is {show(stop)}; it must be None, a string or several strings, each at least one valid character"
        )
    return cast(tuple[str, ...], stops)


class _Stops:
    """The stop strings of an answer.

    Decoded text does not show special tokens. A string that contains special tokens is therefore also searched for in a
    text that shows each of them as a mark: a lone surrogate, which no text contains.

    Attributes:
        plain: the strings.
        marked: the strings that contain special tokens, with marks instead of these.
        longest: maximum length of a string in `marked`, at least 1.
    """

    def __init__(self, stops: tuple[str, ...], tokenizer: LlamaTokenizer | LlamaTokenizerFast) -> None:
        special = tokenizer.skipped_tokens() if stops else {}
        contents = sorted(set(special.values()) - {""}, key=len, reverse=True)
        marks: dict[str, str] = {}

        def mark(match: re.Match[str]) -> str:
            return marks.setdefault(match[0], chr(_FIRST_MARK + len(marks)))

        pattern = re.compile("|".join(map(re.escape, contents)) or "(?!)")
        self.plain = stops
        self.marked = tuple(marked for stop in stops if (marked := pattern.sub(mark, stop)) != stop)
        self.longest = max(map(len, self.marked), default=1)
        self._marks = {i: marks.get(text, _OTHER_MARK) for i, text in special.items()} if self.marked else {}

    def mark(self, index: int | None) -> str:
        """Returns the mark of a special token; "" for other tokens, and for None."""
        return "" if index is None else self._marks.get(index, "")


_FIRST_MARK, _OTHER_MARK = 0xD800, "\udfff"
"""The mark of the first special token in the stop strings, and that of all special tokens in no stop string."""


def _visible(shown: str) -> int:
    """Returns the number of characters that are not marks."""
    return sum(not _is_surrogate(character) for character in shown)


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"
