"""A fake backend whose logits are a known function of the cached tokens, and helpers that run an engine on it."""

from __future__ import annotations

import numpy as np

from puna.backend import PAGE, check_batch, split_outputs
from puna.config import LlamaConfig
from puna.engine import Engine

VOCAB = 31


def next_token(tokens: list[int]) -> int:
    """Returns the most likely next token, a function of every token and its position."""
    return sum((position + 3) * token for position, token in enumerate(tokens)) % VOCAB


class Recorder:
    """A backend that stores tokens in its pages, and whose outputs are a function of all tokens of a sequence.

    A hidden state begins with the number of tokens and the most likely next token.
    """

    name = "recorder"
    numerics = "recorder"
    native_model = None
    chooses_tokens = False
    page_bytes = PAGE * 8

    def __init__(self, pages: int = 100, context: int = 64) -> None:
        self.pages = pages
        self.config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=8, num_attention_heads=2, max_position_embeddings=context, intermediate_size=8
        )
        self.cache = np.full((pages, PAGE), -1)
        self.batches: list[list[int]] = []

    def forward(self, batch):
        check_batch(batch, self.config, self.pages)
        self.batches.append([len(chunk.tokens) for chunk in batch])
        return split_outputs(batch, [self._rows(chunk) for chunk in batch], self.config)

    def _rows(self, chunk):
        width = VOCAB if chunk.output == "logits" else self.config.hidden_size
        rows = np.zeros((chunk.rows, width), np.float32)
        cached = self.cache[list(chunk.pages)].reshape(-1)[: chunk.start].tolist()
        assert -1 not in cached
        for index, token in enumerate(chunk.tokens.tolist()):
            self.cache[chunk.pages[len(cached) // PAGE], len(cached) % PAGE] = token
            cached.append(token)
            row = index - (len(chunk.tokens) - chunk.rows)
            if row >= 0 and chunk.output == "logits":
                rows[row, next_token(cached)] = 1
            elif row >= 0:
                rows[row, :2] = len(cached), next_token(cached)
        return rows

    def read_pages(self, pages):
        return self.cache[list(pages)].view(np.uint8)

    def write_pages(self, pages, data):
        self.cache[list(pages)] = data.view(self.cache.dtype)

    def close(self):
        pass


def expected_answer(prompt: tuple[int, ...], count: int) -> list[int]:
    """Returns the `count` most likely tokens after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def drain(engine: Engine) -> list:
    """Runs the engine until it has no requests; returns all events."""
    events = []
    while engine.busy:
        events += engine.step()
    return events


def tokens_of(events: list, request_id: int) -> list[int]:
    """Returns the generated tokens of one request."""
    return [event.token for event in events if event.request_id == request_id and event.token is not None]
