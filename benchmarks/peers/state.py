"""Whether the machine was fit for a measurement: cores whole, and nobody else at work on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MOST_BY_OTHERS = 0.10
"""Largest share of all processor time that other processes, and other guests of the host, may take of a sample."""


@dataclass(frozen=True)
class Clock:
    """Processor time since the system started, all processors together, in ticks."""

    busy: int
    stolen: int
    whole: int

    @classmethod
    def now(cls) -> Clock:
        """Reads /proc/stat (proc(5))."""
        with Path("/proc/stat").open(encoding="ascii") as file:
            user, nice, system, idle, waiting, irq, soft, stolen = map(int, file.readline().split()[1:9])
        busy = user + nice + system + irq + soft
        return cls(busy, stolen, busy + idle + waiting + stolen)


def taken_by_others(before: Clock, after: Clock, own_seconds: float, ticks_per_second: int) -> float:
    """Share of all processor time between two readings that was neither idle nor `own_seconds` of one's own."""
    whole = after.whole - before.whole
    if whole <= 0:
        return 0.0
    used = after.busy - before.busy + after.stolen - before.stolen
    return max(0.0, used - own_seconds * ticks_per_second) / whole
