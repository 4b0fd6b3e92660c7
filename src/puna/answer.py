"""What becomes of a request's events: `Answer` and `Completion` for text, `Scored` for the logits of a prompt."""

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
    """A finished answer.

    Attributes:
        text: the generated text, without the prompt.
        ids: the generated token ids, without the one that ended the text.
        finish_reason: "stop" (an end-of-text token or a stop string) or "length".
        prompt_ids: the ids the model read.
        prefill_seconds: from the first step to the first token.
        decode_seconds: from the first token to the last.
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
        """Tokens generated per second after the first one; 0 when there was no second one."""
        return max(0, len(self.ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


class Answer:
    """An answer while it is generated.

    Args:
        request: what is asked.
        tokenizer: turns ids into text.
        stops: text that ends the answer and is not part of it.
        primed: whether the text continues the prompt, so that a space between the two is kept.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: LlamaTokenizer | LlamaTokenizerFast,
        stops: tuple[str, ...],
        *,
        primed: bool,
    ) -> None:
        from puna.tokenizer import StreamDecoder

        self.request = request
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: BackendError | None = None
        self._stops = stops
        self._text: list[str] = []
        self._taken = 0
        self._held = ""
        self._times: list[float] = []
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=True)
        if primed:
            for token in request.prompt_ids:
                self._decoder.push(token)

    @property
    def finished(self) -> bool:
        """Whether the answer has ended, or failed."""
        return self.finish_reason is not None or self.error is not None

    def take(self) -> list[str]:
        """The pieces of text that became certain since the last call."""
        taken, self._taken = self._taken, len(self._text)
        return self._text[taken : self._taken]

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Takes what a step from `started` to `ended` (seconds) did; an answer that has ended takes no more."""
        if self.finished:
            return
        if not self._times:
            self._times = [started, ended, ended]
        if not self.ids:
            self._times[1] = ended
        self._times[2] = ended
        if event.token is not None:
            self.ids.append(event.token)
            self._held += self._decoder.push(event.token)
        self.finish_reason, self.error = event.finish_reason, event.error
        if event.finish_reason is not None or event.error is not None:
            self._held += self._decoder.finish()
        if text := self._release():
            self._text.append(text)

    def completion(self) -> Completion:
        """The whole answer; call it once the answer has ended. Raises what it failed with."""
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
        """Takes from the held text what can no longer become a stop string; ends the answer at one."""
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.finish_reason = "stop"
            kept = min(found)
        elif self.finished:
            kept = len(self._held)
        else:
            kept = len(self._held) - max((_overlap(self._held, stop) for stop in self._stops), default=0)
        text, self._held = self._held[:kept], self._held[kept:]
        return text


class Scored:
    """The logits of a prompt, piece by piece.

    Args:
        request: a request with `prompt_logits` and no tokens to generate.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.finished = False
        self._rows: list[NDArray[np.float32]] = []

    def feed(self, event: Event, started: float, ended: float) -> None:
        """Takes what a step did."""
        if event.logits is not None:
            self._rows.append(event.logits)
        self.finished = event.finish_reason is not None

    def take(self) -> list[NDArray[np.float32]]:
        """The rows that came since the last call: arrays of (tokens, vocab_size), in order."""
        rows, self._rows = self._rows, []
        return rows


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
