"""Measures the share of processor time that other processes used during a sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_SHARE_OF_OTHERS = 0.10
"""Largest share of processor time that other processes and other guests of the host use in an undisturbed sample."""


@dataclass(frozen=True)
class Clock:
    """Processor time since the system started, summed over processors, in ticks."""

    busy: int
    stolen: int
    total: int

    @classmethod
    def now(cls) -> Clock:
        """Reads /proc/stat (proc(5))."""
        with Path("/proc/stat").open(encoding="ascii") as file:
            user, nice, system, idle, waiting, irq, soft, stolen = map(int, file.readline().split()[1:9])
        busy = user + nice + system + irq + soft
        return cls(busy, stolen, busy + idle + waiting + stolen)


def share_of_others(before: Clock, after: Clock, own_seconds: float, ticks_per_second: int) -> float:
    """Returns the share of processor time between two readings that was neither idle nor the caller's `own_seconds`."""
    total = after.total - before.total
    if total <= 0:
        return 0.0
    busy = after.busy - before.busy + after.stolen - before.stolen
    return max(0.0, busy - own_seconds * ticks_per_second) / total
