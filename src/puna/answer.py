"""Results of requests, built from the engine's events: `Answer` and `Completion` (text), and `PromptLogits`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from puna.engine import Event, FinishReason, Request
from puna.errors import BackendError

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast


@dataclass(frozen=True)
class Completion:
    """A complete answer.

    Attributes:
        text: the generated text, without the prompt.
        ids: the generated token ids, without the end token.
        finish_reason: "stop" (an end token or a stop string) or "length".
        prompt_ids: the token ids of the prompt.
        prefill_seconds: time from the start of the first step to the first token.
        decode_seconds: time from the first token to the last.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read per second."""
        return len(self.prompt_ids) / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens generated per second after the first token; 0 for an answer of at most one token."""
        return max(0, len(self.ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Answer:
    """An answer that is being generated.

    Args:
        request: the request that is answered.
        tokenizer: decodes the ids.
        stops: strings that end the answer; they are not part of it.
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
        from puna.tokenizer import StreamDecoder

        self.request = request
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: BackendError | None = None
        self._stops = stops
        self._text: list[str] = []
        self._next_piece = 0  # index of the first piece of `_text` that `take` has not returned
        self._pending = ""  # decoded text that may be the beginning of a stop string
        self._times: list[float] = []  # start of the first step, first token, last token; seconds
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
        if continues_prompt:
            for token in request.prompt_ids:
                self._decoder.push(token)

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
        if event.token is not None:
            self.ids.append(event.token)
            self._pending += self._decoder.push(event.token)
        self.finish_reason, self.error = event.finish_reason, event.error
        if event.finish_reason is not None or event.error is not None:
            self._pending += self._decoder.finish()
        if text := self._release():
            self._text.append(text)

    def completion(self) -> Completion:
        """Returns the complete answer, or raises the error that ended it. Must be called after the answer has ended."""
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None
        started, first, last = self._times
        return Completion(
            "".join(self._text),
            tuple(self.ids),
            self.finish_reason,
            self.request.prompt_ids,
            first - started,
            last - first,
        )

    def _release(self) -> str:
        """Removes and returns pending text before a stop string or the start of one. A stop string ends the answer."""
        matches = [index for index in (self._pending.find(stop) for stop in self._stops) if index >= 0]
        if matches:
            self.finish_reason = "stop"
            end = min(matches)
        elif self.finished:
            end = len(self._pending)
        else:
            end = len(self._pending) - max((_overlap(self._pending, stop) for stop in self._stops), default=0)
        text, self._pending = self._pending[:end], self._pending[end:]
        return text


class PromptLogits:
    """The logits of a prompt, chunk by chunk.

    Args:
        request: a request with `prompt_logits` and no tokens to generate.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.finished = False
        self._rows: list[NDArray[np.float32]] = []

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Adds the event of a step; the times are ignored."""
        if event.logits is not None:
            self._rows.append(event.logits)
        self.finished = event.finish_reason is not None

    def take(self) -> list[NDArray[np.float32]]:
        """Returns the logits added since the last call: arrays of shape (tokens, vocab_size), in order."""
        rows, self._rows = self._rows, []
        return rows


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
