"""Durations in words."""

from __future__ import annotations

import math
import re

from puna.errors import ConfigError, show

_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


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


def read_seconds(name: str, text: str) -> float:
    """Returns the seconds of a duration such as "90s", "10min" or "1h 30min".

    Raises:
        ConfigError: the text is something else; `name` is that of the option.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]+)\s*", text.lower())
    is_complete = "".join(number + unit for number, unit in parts) == re.sub(r"\s", "", text.lower())
    if not parts or not is_complete or any(unit not in _SECONDS for _, unit in parts):
        raise ConfigError(f"{name} is {show(text)}; it must be a duration such as 90s, 10min or 1h30min")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{name} is {show(text)}; it must be more than 0 seconds, such as 90s, 10min or 1h30min")
    return seconds
