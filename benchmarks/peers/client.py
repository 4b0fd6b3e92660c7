"""The client of load.py: sends chat requests and notes when each piece of the answer arrives."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WORDS = [
    "river",
    "stone",
    "market",
    "garden",
    "letter",
    "bread",
    "mountain",
    "village",
    "lantern",
    "forest",
    "music",
    "paper",
]


@dataclass
class Answer:
    """A streamed answer: when it was requested, when each piece of text arrived, and its number of tokens."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.sent


def text(words: int, seed: int) -> str:
    """Returns random words, about one token each."""
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) for _ in range(words))


async def ask(port: int, messages: Sequence[dict[str, str]], tokens: int, fields: dict[str, Any]) -> Answer:
    """Requests a streamed chat completion; returns when it has ended."""
    body = json.dumps(
        {
            "model": "base", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}, **fields,
        }
    ).encode()  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    answer = Answer(time.perf_counter())
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read(2000)!r}")
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event.get("usage"):
                answer.tokens = event["usage"]["completion_tokens"]
                answer.cached = (event["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                answer.arrivals.append(time.perf_counter())
    writer.close()
    assert answer.tokens == tokens, answer
    return answer


def chat(system: str, user: str) -> list[dict[str, str]]:
    """Returns a conversation with a system prompt and a question."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
