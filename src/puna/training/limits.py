"""The limits of a run: memory, time, and the context of the model."""

from __future__ import annotations

import time

from puna.config import LlamaConfig
from puna.errors import ConfigError, PunaError, show
from puna.saving import parse_size
from puna.training.events import Observer, StepEvent
from puna.training.report.durations import read_seconds
from puna.training.settings import TrainingSettings
from puna.training.tasks.base import Examples

_SHORTEST = 2
"""The least value of `max_length`."""


def read_limits(settings: TrainingSettings) -> tuple[int | None, float | None]:
    """Returns the maximum bytes and seconds of a run; None for no limit.

    Raises:
        ConfigError: one of them is not a size or a duration.
    """
    try:
        memory = None if settings.max_memory is None else parse_size(settings.max_memory)
    except PunaError as exc:
        raise ConfigError(
            f"max_memory is {show(settings.max_memory)}; it must be a size such as 800MB, 2GB or 2GiB"
        ) from exc
    return memory, None if settings.max_time is None else read_seconds("max_time", settings.max_time)


def check_context(examples: Examples, virtual: int, config: LlamaConfig, settings: TrainingSettings) -> None:
    """Checks that virtual tokens and each document fit in the context of the model.

    Args:
        virtual: number of virtual tokens before each document.

    Raises:
        ConfigError: they do not.
    """
    longest, context = examples.longest(), config.context_length
    tokens = min(len(longest.ids), settings.max_length)  # the last token of a window is only predicted
    if virtual + tokens <= context:
        return
    document = f"the longest document ({longest.source}) has {tokens:,} tokens"
    if not virtual:
        raise ConfigError(
            f"{document}, but the context of the model has {context:,}; set max_length to {context} or less"
        )
    remedy = f"set max_length to {context - virtual} or less, or use fewer virtual tokens"
    if virtual > context - _SHORTEST:
        remedy = f"use at most {max(1, context - tokens):,} virtual tokens"
    raise ConfigError(
        f"there are {virtual:,} virtual tokens, and {document}, together {virtual + tokens:,}, but the context of the "
        f"model has {context:,}; {remedy}"
    )


class TimeLimit(Observer):
    """Stops a run that takes longer than its maximum time, because the estimate was too low.

    Args:
        seconds: the maximum time.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def stepped(self, event: StepEvent) -> bool:
        """Requests a stop after the time."""
        return time.monotonic() > self._end
