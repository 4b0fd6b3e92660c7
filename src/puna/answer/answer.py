"""Texts built from the engine's events: `Answer` and `Completion`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from puna.answer.stops import StopSearch
from puna.answer.timing import Timing
from puna.engine import Event, FinishReason, PrefixMiss, Request, TokenLogprobs
from puna.errors import RequestError
from puna.native.sampling import logprobs_of
from puna.tokenizer.streams import StreamDecoder

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
        stop: the stop string or the id of the end token that ended the answer; None if neither did.
        timing: when the request arrived and its tokens were generated.
        accepted_prediction_tokens, rejected_prediction_tokens: numbers of tokens of the option `prediction` that the
            answer has, and of its other tokens.
        prefix_miss: why the prefix cache did not have all of the prompt; None without the option `explain_prefix`, or
            if the cache had all of it.
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
    stop: str | int | None = None
    timing: Timing | None = None
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    prefix_miss: PrefixMiss | None = None

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


class Delta(NamedTuple):
    """A part of an answer that no later token can change: text, and the tokens whose text is complete with it.

    The text ends neither inside a character nor inside a possible stop string. Joined, the deltas of an answer have its
    complete text, and all its tokens except those after the beginning of a stop string.

    Attributes:
        logprobs: the log-probabilities at each token of `ids`; empty without the option `logprobs`.
        finish_reason: why the answer ended, in its last delta; else None.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None


class PromptProgress(NamedTuple):
    """How far a prompt has been read.

    Attributes:
        done: number of tokens that were read or found in the prefix cache.
        total: number of tokens of the prompt.
        cached: number of tokens that were found in the prefix cache.
    """

    done: int
    total: int
    cached: int


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
        include_stop: whether the stop string that ends the answer is part of it.
        skip_special_tokens: whether the text leaves special tokens out.

    Attributes:
        request: the request.
        ids: the generated token ids, without the end token.
        stop: see `Completion`.
        cached_tokens: number of prompt tokens that were found in the prefix cache.
        timing: when the request arrived and its tokens were generated.
        prefix_miss: see `Completion`.
        prediction: numbers of accepted and rejected tokens of the prediction.
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
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self.request = request
        self._rule = rule
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.stop: str | int | None = None
        self.cached_tokens = 0
        self._stops = StopSearch(stops, tokenizer, included=include_stop, shown=not skip_special_tokens)
        self._logprobs: list[TokenLogprobs] = []
        self._stop_logprob: tuple[float, ...] = ()  # log-probability of the end token
        self._prompt_top = prompt_logprobs
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]
        self._text: list[str] = []
        self._next_piece = 0  # index of the first piece of `_text` that `take` has not returned
        self._ends: _TokenEnds | None = None  # if `take` returns deltas
        self._next_token = 0  # index of the first token that `take` has not returned
        self._progress = False
        self._read_tokens = self._reported_tokens = 0  # of the prompt
        self.timing = Timing()
        self.prefix_miss: PrefixMiss | None = None
        self.prediction = 0, 0
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens, request.prompt_ids if continues_prompt else ())

    @property
    def finished(self) -> bool:
        """Whether the answer is complete or has failed."""
        return self.finish_reason is not None or self.error is not None

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        """The log-probabilities at each token of the prompt that has been read, as in `Completion`."""
        return None if self._prompt_top is None else tuple(self._prompt_logprobs)

    def use_deltas(self, progress: bool) -> None:
        """Lets `take` return deltas instead of texts and, with `progress`, the progress of the prompt."""
        self._ends, self._progress = _TokenEnds(), progress

    def take(self) -> Sequence[str | Delta | PromptProgress]:
        """Returns the pieces that became final since the last call: texts or, after `use_deltas`, at most one delta."""
        start, self._next_piece = self._next_piece, len(self._text)
        texts = self._text[start : self._next_piece]
        if self._ends is None:
            return texts
        pieces: list[Delta | PromptProgress] = []
        if self._progress and self._read_tokens > self._reported_tokens:
            self._reported_tokens = self._read_tokens
            pieces.append(PromptProgress(self._read_tokens, len(self.request.prompt_ids), self.cached_tokens))
        first, self._next_token = self._next_token, self._ends.complete
        ids = tuple(self.ids[first : self._next_token])
        if texts or ids or self.finish_reason is not None:
            logprobs = tuple(self._logprobs[first : self._next_token])
            pieces.append(Delta("".join(texts), ids, logprobs, self.finish_reason))
        return pieces

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds the event of a step that ran from `started` to `ended` (seconds), unless the answer has ended."""
        if self.finished:
            return
        self.timing.add(event.token is not None or event.stop_id is not None, started, ended)
        self.cached_tokens += event.cached_tokens
        self._read_tokens += event.cached_tokens + event.prompt_tokens
        if self._prompt_top is not None and event.logits is not None:
            self._add_prompt(event.logits, self._prompt_top)
        self.finish_reason, self.error, self.stop = event.finish_reason, event.error, event.stop_id
        self.prefix_miss = event.prefix_miss or self.prefix_miss
        self.prediction = event.prediction or self.prediction
        self._add_token(event)
        if self.finish_reason == "stop" and self._rule is not None and not self._rule.matches("".join(self._text)):
            self.finish_reason = "invalid"

    def _add_token(self, event: Event) -> None:
        """Adds the token of an event and the text that is final now."""
        text, special = "", event.stop_id
        if event.token is not None:
            special = event.token
            self.ids.append(event.token)
            if event.logprobs is not None:
                self._logprobs.append(event.logprobs)
            text = self._decoder.push(event.token)
            if self._ends is not None:
                self._ends.push(len(text), len(self._decoder.finish()), self._stops.is_marked(special))
        elif event.logprobs is not None:
            self._stop_logprob = (event.logprobs.logprob,)
        held = self._decoder.finish() if self.finished or self._stops.is_marked(special) else ""
        ignored = len(self.ids) <= self.request.sampling.min_tokens
        if final := self._stops.push(text, special, held, self.finished, ignored):
            self._text.append(final)
        if self._stops.stop is not None:
            self.finish_reason, self.stop = "stop", self._stops.stop
        if self._ends is not None:
            self._ends.advance(len(final), self.finished, self._stops.stop is not None)

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
        chosen = [item.logprob for item in self._logprobs] + [*self._stop_logprob]
        return Completion(
            "".join(self._text),
            tuple(self.ids),
            self.finish_reason,
            self.request.prompt_ids,
            self.timing.prefill_seconds,
            self.timing.decode_seconds,
            cached_tokens=self.cached_tokens,
            logprobs=None if self.request.sampling.logprobs is None else tuple(self._logprobs),
            mean_logprob=math.fsum(chosen) / len(chosen) if chosen else None,
            prompt_logprobs=self.prompt_logprobs,
            stop=self.stop,
            timing=self.timing,
            accepted_prediction_tokens=self.prediction[0],
            rejected_prediction_tokens=self.prediction[1],
            prefix_miss=self.prefix_miss,
        )

    def _add_prompt(self, logits: NDArray[np.float32], top: int) -> None:
        """Adds the log-probabilities of the prompt's tokens that follow these logits."""
        start = len(self._prompt_logprobs)
        tokens = self.request.prompt_ids[start : start + len(logits)]
        self._prompt_logprobs += logprobs_of(logits[: len(tokens)], tokens, top)


class _TokenEnds:
    """Where the text of each token of an answer ends, and which of these texts are final.

    Attributes:
        complete: number of tokens whose text is final.
    """

    def __init__(self) -> None:
        self.complete = 0
        self._ends = [0]  # in characters of the answer: its start, and the end of each token
        self._marked: list[bool] = []  # whether the token may be part of a stop string, although it has no text
        self._decoded = self._final = 0  # number of characters that the decoder has returned, and that are final

    def push(self, decoded: int, held: int, marked: bool) -> None:
        """Adds a token, which the decoder turned into `decoded` characters, while it holds others."""
        self._decoded += decoded
        end = self._decoded + held
        # An incomplete character may be shown as several characters U+FFFD, which the next byte joins to one.
        for index in range(len(self._ends) - 1, -1, -1):
            if self._ends[index] <= end:
                break
            self._ends[index] = end
        self._ends.append(end)
        self._marked.append(marked)

    def advance(self, final: int, ended: bool, stopped: bool) -> None:
        """Adds `final` characters to the final text.

        Args:
            ended: whether the answer has ended.
            stopped: whether a stop string has ended the answer: tokens that begin in or after it are not complete.
        """
        self._final += final
        while self.complete < len(self._marked):
            start, end = self._ends[self.complete : self.complete + 2]
            begins = start < self._final
            is_final = end <= self._final and (begins or not self._marked[self.complete])
            if not (is_final or (begins if stopped else ended)):
                break
            self.complete += 1


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
