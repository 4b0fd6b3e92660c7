"""`Statistics`: numbers of an engine at one moment. `Counters`: the sums that the engine adds to.

Any thread may take a snapshot while the stepping thread runs, without a lock: reading an integer and copying a small
container are operations that Python does not interrupt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Sums since the start of the engine; only the stepping thread changes them. See `Statistics`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_positions: Counter[int] = field(default_factory=Counter)
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    mask_seconds: float = 0.0
    steps: Counter[int] = field(default_factory=Counter)  # number of tokens -> number of steps


@dataclass(frozen=True)
class Statistics:
    """Numbers of an engine. Those up to `cached_pages` describe this moment; the others are sums since its start.

    Attributes:
        running, waiting: numbers of requests.
        running_adapters, waiting_adapters: the same by the adapter's name; "" is the model without one.
        slots: maximum number of requests that run at once.
        page_tokens, pages: number of tokens of a page, and of pages of the cache.
        used_pages: number of pages that running requests hold.
        cached_pages: number of other pages that hold prefixes; they are reused when space is needed.
        prompt_tokens: tokens of prompts that were computed or found in the prefix cache.
        cached_tokens: those that were found in the prefix cache.
        generated_tokens: tokens of answers, with end tokens.
        preemptions: number of times that a request has lost its pages.
        evictions: number of pages of cached prefixes that were reused.
        drafts, draft_tokens, accepted_tokens: numbers of steps with guesses, of guesses, and of right guesses.
        accepted_positions: numbers of right guesses by their position in a guess, from 0.
        accepted_prediction_tokens, rejected_prediction_tokens: numbers of tokens of predictions that the answers
            contain, and that they do not contain.
        mask_seconds: time spent on computing the tokens that grammars allow.
        steps: number of steps by their number of tokens.
        disk_hits, disk_bytes, disk_evictions, disk_rejects: pages that were read from the disk, bytes that were written
            to it, files that were removed to limit their size, and files that were damaged.
    """

    running: int
    waiting: int
    running_adapters: Mapping[str, int]
    waiting_adapters: Mapping[str, int]
    slots: int
    page_tokens: int
    pages: int
    used_pages: int
    cached_pages: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    evictions: int
    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_positions: Mapping[int, int]
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    mask_seconds: float
    steps: Mapping[int, int]
    disk_hits: int = 0
    disk_bytes: int = 0
    disk_evictions: int = 0
    disk_rejects: int = 0

    @property
    def page_use(self) -> float:
        """Share of the pages that running requests hold, from 0 to 1."""
        return self.used_pages / self.pages if self.pages else 0.0
