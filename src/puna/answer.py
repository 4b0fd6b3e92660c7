"""Texts built from the engine's events: `Answer` and `Completion`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from puna.engine import Event, FinishReason, Request, TokenLogprobs
from puna.errors import RequestError, show
from puna.native.sampling import logprobs_of
from puna.tokenizer.streams import StreamDecoder, overlap

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


@dataclass(frozen=True, repr=False)
class Completion:
    """A complete answer. `str()` returns its text.

    Attributes:
        text: the generated text, without the prompt.
        ids: the generated token ids, without the end token.
        finish_reason: "stop" (an end token, a stop string, or the end of the grammar), "length" (max_tokens), or
            "invalid": the text does not follow the call's schema, expression, grammar or choice, because a stop string
            ended it or a JSON object repeats a key.
        prompt_ids: the token ids of the prompt.
        prefill_seconds: time from the start of the first step to the first token.
        decode_seconds: time from the first token to the last.
        cached_tokens: number of prompt tokens that were found in the prefix cache and not read again.
        logprobs: the log-probabilities at each token of `ids`; None without the option `logprobs`.
        mean_logprob: mean log-probability in nats of the tokens of `ids` and the end token; None without the options
            `logprobs` and `best_of`, and for an answer without tokens.
        prompt_logprobs: the log-probabilities at each token of `prompt_ids`, None for the first token; None without the
            option `prompt_logprobs`.
        alternatives: the further answers to the prompt, if the option `n` is above 1.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    mean_logprob: float | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    alternatives: tuple[Completion, ...] = ()

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


class TextRule(Protocol):
    """A rule that the text of an answer must follow."""

    def matches(self, text: str) -> bool:
        """Returns whether a text follows the rule."""
        ...


class Answer:
    """An answer that is being generated.

    Args:
        request: the request that is answered.
        tokenizer: decodes the ids.
        stops: strings that end the answer; they are not part of it. A special token in a string matches that token,
            although the text of the answer does not contain it.
        continues_prompt: whether the answer continues the prompt's text: a space between both is kept.
        prompt_logprobs: number of most likely tokens in the log-probabilities of the prompt. Its request has
            `prompt_logits`, and is the one whose log-probabilities are computed; None for no log-probabilities.
        rule: the rule that the text must follow, of which `request` has the grammar.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: LlamaTokenizer | LlamaTokenizerFast,
        stops: tuple[str, ...],
        *,
        continues_prompt: bool,
        prompt_logprobs: int | None = None,
        rule: TextRule | None = None,
    ) -> None:
        self.request = request
        self._rule = rule
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._stops = _Stops(stops, tokenizer)
        self._logprobs: list[TokenLogprobs] = []
        self._stop_logprob: tuple[float, ...] = ()  # log-probability of the end token
        self._prompt_top = prompt_logprobs
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]
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
        if self._prompt_top is not None and event.logits is not None:
            self._add_prompt(event.logits, self._prompt_top)
        if event.token is not None:
            self.ids.append(event.token)
            if event.logprobs is not None:
                self._logprobs.append(event.logprobs)
            self._pending += self._decoder.push(event.token)
        elif event.logprobs is not None:
            self._stop_logprob = (event.logprobs.logprob,)
        mark = self._stops.mark(event.token if event.stop_id is None else event.stop_id)
        self.finish_reason, self.error = event.finish_reason, event.error
        rest = self._decoder.finish() if mark or self.finished else ""
        if mark:
            self._marks.append((len(self._pending) + len(rest), mark))
        if text := self._release(rest):
            self._text.append(text)
        if self.finish_reason == "stop" and self._rule is not None and not self._rule.matches("".join(self._text)):
            self.finish_reason = "invalid"

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
        chosen = [item.logprob for item in self._logprobs] + [*self._stop_logprob]
        return Completion(
            "".join(self._text),
            tuple(self.ids),
            self.finish_reason,
            self.request.prompt_ids,
            first - started,
            last - first,
            cached_tokens=self._cached_tokens,
            logprobs=None if self.request.sampling.logprobs is None else tuple(self._logprobs),
            mean_logprob=math.fsum(chosen) / len(chosen) if chosen else None,
            prompt_logprobs=None if self._prompt_top is None else tuple(self._prompt_logprobs),
        )

    def _add_prompt(self, logits: NDArray[np.float32], top: int) -> None:
        """Adds the log-probabilities of the prompt's tokens that follow these logits."""
        start = len(self._prompt_logprobs)
        tokens = self.request.prompt_ids[start : start + len(logits)]
        self._prompt_logprobs += logprobs_of(logits[: len(tokens)], tokens, top)

    def _release(self, held: str) -> str:
        """Removes and returns pending text before a stop string or the start of one. A stop string ends the answer.

        Args:
            held: text that follows the pending text if the answer ends here. It is searched after a special token,
                since no later token can change a stop string that ends with the special token.
        """
        text = self._pending + held
        if not self._stops.plain:
            self._pending = ""
            return text
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


@dataclass(frozen=True)
class Candidates:
    """The answers to one prompt.

    Attributes:
        answers: the candidates, one per random generator. Only the first reads the complete prompt for its
            log-probabilities.
        n: number of answers to return.
        ranked: whether these are the candidates with the highest mean log-probabilities, the best first.
        logprobs: whether completions have log-probabilities; the ranking needs them in any case.
        equal: whether all candidates are equal, because no random number is used.
    """

    answers: tuple[Answer, ...]
    n: int
    ranked: bool
    logprobs: bool
    equal: bool

    @property
    def required(self) -> tuple[Answer, ...]:
        """The answers from which `completion` takes those to return."""
        return self.answers[:1] if self.equal else self.answers

    def completion(self) -> Completion:
        """Returns the first answer with the others as its alternatives, once the required answers are complete.

        Raises the errors of `Answer.completion`.
        """
        completions = [answer.completion() for answer in self.required]
        prompt_logprobs = completions[0].prompt_logprobs
        if self.ranked:
            completions.sort(key=lambda item: item.mean_logprob or 0.0, reverse=True)
        if self.equal:
            completions = [completions[0] for _ in range(self.n)]
        first, *others = (
            replace(item, logprobs=item.logprobs if self.logprobs else None, prompt_logprobs=prompt_logprobs)
            for item in completions[: self.n]
        )
        return replace(first, alternatives=tuple(others))


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
