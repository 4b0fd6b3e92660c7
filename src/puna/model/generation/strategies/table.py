"""The function of each decoding strategy."""

from __future__ import annotations

from collections.abc import Callable

from puna.config import GenerationMode
from puna.model.generation.loop import Decoding
from puna.model.generation.outputs import GenerateOutput
from puna.model.generation.strategies.greedy import greedy_search
from puna.model.generation.strategies.sampling import sample

STRATEGIES: dict[GenerationMode, Callable[[Decoding], GenerateOutput]] = {
    GenerationMode.GREEDY_SEARCH: greedy_search,
    GenerationMode.SAMPLE: sample,
}
"""A strategy generates up to `decoding.limit` tokens and returns the texts, and what `decoding.collected` holds."""
