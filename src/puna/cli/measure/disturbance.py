"""How much other programs disturbed a measurement."""

from __future__ import annotations

import os
from pathlib import Path

DISTURBED = 0.1
"""Cores that other programs may use on average before a measurement counts as disturbed."""


class OtherPrograms:
    """Measures the processor time that other programs use, from the creation of the object on (Linux only)."""

    def __init__(self) -> None:
        self._start = _busy_and_own()

    def cores(self) -> float | None:
        """Returns the number of cores that other programs used on average; None if the system does not report it."""
        end = _busy_and_own()
        if self._start is None or end is None:
            return None
        wall, busy, own = (after - before for before, after in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / wall if wall > 0 else None


def disturbance(cores: float | None, cores_ok: bool) -> str | None:
    """Returns a sentence for the user if other programs disturbed a measurement, else None.

    Args:
        cores: the result of `OtherPrograms.cores`.
        cores_ok: whether each thread ran at full speed while the others were running.
    """
    if cores is not None and cores > DISTURBED:
        return (
            f"Other programs used {cores:.1f} CPU cores on average during the measurement, so the speeds are too low; "
            "close them and measure again."
        )
    if not cores_ok:
        return (
            "The threads slowed each other down: other programs used the CPU, or two threads share a physical core. "
            "Close other programs, or lower --threads, and measure again."
        )
    return None


def _busy_and_own() -> tuple[float, float, float] | None:
    """Returns three times in seconds since a fixed moment: elapsed, busy (all processors), used by this process."""
    times = os.times()
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) for field in fields[:8])
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return times.elapsed, busy, times.user + times.system
