"""`ThinkingParser`: splits the text of an answer into the reasoning between <think> and </think>, and the answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from puna.answer import Delta
from puna.tokenizer.streams import overlap

if TYPE_CHECKING:
    from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast

OPEN, CLOSE = "<think>", "</think>"
"""The tags of DeepSeek, Qwen and other models. A model has them if its chat template contains both."""


_LAST_TOKENS = 32
"""Number of tokens at the end of a prompt that may contain the opening tag."""


class ThinkingParser:
    """Splits the text of an answer as it arrives. Reasoning can only be at the beginning of an answer.

    Line ends next to the tags are removed.

    Args:
        is_open: whether the prompt ends with the opening tag.
        decode: returns the text of token ids, with special tokens.
    """

    def __init__(self, is_open: bool, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._state: Literal["start", "reasoning", "close", "answer"] = "reasoning" if is_open else "start"
        self._buffer = ""
        self._is_empty = True  # whether no reasoning has been returned
        self._pending: list[int] = []  # ids of earlier parts that may contain the beginning of the closing tag

    def split(self, delta: Delta) -> tuple[Delta | None, Delta]:
        """Returns the parts of `delta` that belong to the reasoning, if any, and to the answer."""
        was_reasoning = self._state == "reasoning"
        reasoning, text = self._feed(delta.text)
        is_reasoning = was_reasoning or self._state in ("reasoning", "close") or bool(reasoning)
        if delta.finish_reason is not None:
            last = self._finish()
            reasoning, text = reasoning + last[0], text + last[1]
        if not is_reasoning:
            return None, delta._replace(text=text)
        ids, logprobs, count = delta.ids, delta.logprobs, len(delta.ids)
        known = [*self._pending, *ids]
        if text:
            end = bisect_left(range(len(known)), True, key=lambda length: CLOSE in self._decode(known[:length]))
            count = max(0, end - len(self._pending))
        self._pending = known if self._state == "reasoning" and overlap(self._buffer, CLOSE) else []
        return Delta(reasoning, ids[:count], logprobs[:count]), delta._replace(
            text=text, ids=ids[count:], logprobs=logprobs[count:]
        )

    def _feed(self, text: str) -> tuple[str, str]:
        """Adds a part of the answer's text; returns the reasoning and the answer's text that no later part
        can change."""
        self._buffer += text
        reasoning = answer = ""
        if self._state == "start":
            self._begin()
        if self._state == "reasoning":
            reasoning = self._read_reasoning()
        if self._state == "close" and (rest := self._buffer.lstrip("\n")):
            self._buffer, self._state = rest, "answer"
        if self._state == "answer":
            answer, self._buffer = self._buffer, ""
        return reasoning, answer

    def _finish(self) -> tuple[str, str]:
        """Returns the remaining text, when the answer has ended."""
        text, self._buffer = self._buffer, ""
        if self._state == "reasoning":
            return text.rstrip("\n"), ""
        return "", "" if self._state == "close" else text

    def _begin(self) -> None:
        start = self._buffer.lstrip()
        if start.startswith(OPEN):
            self._buffer, self._state = start.removeprefix(OPEN), "reasoning"
        elif not OPEN.startswith(start):
            self._state = "answer"

    def _read_reasoning(self) -> str:
        index = self._buffer.find(CLOSE)
        if index >= 0:
            text, self._buffer, self._state = self._buffer[:index], self._buffer[index + len(CLOSE) :], "close"
            text = text.rstrip("\n")
        else:
            text = self._buffer[: len(self._buffer) - overlap(self._buffer, CLOSE)].rstrip("\n")
            self._buffer = self._buffer[len(text) :]
        if self._is_empty:
            kept = text.lstrip("\n")
            self._is_empty = not kept
            return kept
        return text


def thinking_parser(
    template: str, prompt: Sequence[int], tokenizer: LlamaTokenizer | LlamaTokenizerFast
) -> ThinkingParser | None:
    """Returns the parser of an answer to a prompt; None if the model's chat template does not have the tags."""
    if OPEN not in template or CLOSE not in template:
        return None

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    return ThinkingParser(decode(prompt[-_LAST_TOKENS:]).rstrip().endswith(OPEN), decode)
