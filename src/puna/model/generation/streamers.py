"""Streamers: objects that receive the tokens of `generate()` while it runs, with the names of transformers.

Like those of transformers, they print up to the last space, because a later token can change the end of the text.
`LLM` uses `puna.tokenizer.streams` instead, which decides exactly which characters are complete.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from queue import Queue
from typing import Any

from puna.errors import RequestError

_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""Unicode blocks of Chinese characters, which are words without spaces."""


class BaseStreamer:
    """Base class of streamers."""

    def put(self, value: Any) -> None:
        """Receives the prompt's ids, (rows, tokens), then one new id per row, (rows,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define put(); define it in a subclass")

    def end(self) -> None:
        """Called when all rows have ended."""
        raise NotImplementedError(f"{type(self).__name__} does not define end(); define it in a subclass")


class TextStreamer(BaseStreamer):
    """Prints the text of one row as soon as words are complete.

    Args:
        tokenizer: decodes the ids.
        skip_prompt: do not print the prompt.
        decode_kwargs: arguments of the tokenizer's `decode`, such as `skip_special_tokens`.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.token_cache: list[int] = []  # the tokens since the last line break
        self.print_len = 0  # the number of characters of these tokens that have been printed
        self.next_tokens_are_prompt = True

    def put(self, value: Any) -> None:
        """Receives ids, (1, tokens) or (tokens,), and prints the text that is complete.

        Raises:
            RequestError: there is more than one row.
        """
        if value.dim() > 1:
            if len(value) > 1:
                raise RequestError(
                    f"{type(self).__name__} received {len(value)} rows; it supports one; generate one text at a time"
                )
            value = value[0]
        if self.skip_prompt and self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        self.token_cache.extend(value.tolist())
        text = self._decode()
        end = _complete(text)
        printable = text[self.print_len : end]
        if text.endswith("\n"):
            self.token_cache, self.print_len = [], 0
        else:
            self.print_len += len(printable)
        self.on_finalized_text(printable)

    def end(self) -> None:
        """Prints the remaining text and a line break."""
        text = self._decode()[self.print_len :] if self.token_cache else ""
        self.token_cache, self.print_len = [], 0
        self.next_tokens_are_prompt = True
        self.on_finalized_text(text, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receives complete text; `stream_end` is True in the last call."""
        sys.stdout.write(text + "\n" if stream_end else text)
        sys.stdout.flush()

    def _decode(self) -> str:
        text: str = self.tokenizer.decode(self.token_cache, **self.decode_kwargs)
        return text


class TextIteratorStreamer(TextStreamer):
    """An iterator over the text of one row, for a thread other than that of `generate()`.

    Args:
        timeout: seconds to wait for the next text; then `queue.Empty` is raised. None waits without a limit.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: Queue[str | None] = Queue()
        self.stop_signal: str | None = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Puts the text into the queue, and `stop_signal` after the last one."""
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if value is None or value == self.stop_signal:
            raise StopIteration
        return value


class AsyncTextIteratorStreamer(TextStreamer):
    """An asynchronous iterator over the text of one row, while `generate()` runs in a thread.

    It must be constructed inside a coroutine.

    Args:
        timeout: seconds to wait for the next text; then `TimeoutError` is raised. None waits without a limit.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: asyncio.Queue[str | None] = asyncio.Queue()
        self.stop_signal: str | None = None
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Puts the text into the queue, and `stop_signal` after the last one; may be called in any thread."""
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.text_queue.put_nowait, self.stop_signal)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            value = await asyncio.wait_for(self.text_queue.get(), self.timeout)
        except asyncio.TimeoutError as exc:  # not yet the same class as TimeoutError in Python 3.10
            raise TimeoutError(f"no text arrived within {self.timeout} seconds") from exc
        if value is None or value == self.stop_signal:
            raise StopAsyncIteration
        return value


def _complete(text: str) -> int:
    """Returns the length of the text that later tokens do not change: up to a line break, an ideograph or a space."""
    if text.endswith("\n") or (text and any(first <= ord(text[-1]) <= last for first, last in _IDEOGRAPHS)):
        return len(text)
    return text.rfind(" ") + 1
