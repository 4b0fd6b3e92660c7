"""The limits of a run's memory and time."""

from __future__ import annotations

import time

from puna.errors import ConfigError, PunaError, show
from puna.saving import parse_size
from puna.training.events import Observer, StepEvent
from puna.training.report.durations import read_seconds
from puna.training.settings import TrainingSettings


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
