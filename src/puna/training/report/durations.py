"""Durations in words."""

from __future__ import annotations


def show_seconds(seconds: float) -> str:
    """Returns a duration with two units, such as "1 h 05 min", "3 min 20 s" or "0.25 s"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24:02} h"
