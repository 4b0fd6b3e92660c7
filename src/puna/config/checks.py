"""Checks of single configuration fields. Each error names the field, its value and the limit."""

from __future__ import annotations

import math
from typing import Any

from puna.errors import ConfigError

_INT64_MAX = 2**63 - 1
"""The largest integer of tensor libraries; JSON integers are unbounded."""


def check_whole(name: str, value: Any, low: int = 1) -> None:
    """Raises ConfigError unless `value` is an int from `low` to 2^63 - 1 (bools are rejected)."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= _INT64_MAX:
        raise ConfigError(f"{name} is {_display(value)}; it must be a whole number, {low} or more")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a finite number from `low` to `high`."""
    if not _is_finite(value) or not low <= value <= high:
        raise ConfigError(f"{name} is {_display(value)}; it must be between {low} and {high}")


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ConfigError unless it is a finite number above 0."""
    if not _is_finite(value) or value <= 0:
        raise ConfigError(f"{name} is {_display(value)}; it must be a positive number")
    return float(value)


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false")


def absent_if_minus_one(value: Any) -> Any:
    """Replaces the token id -1, "no such token" in early converted checkpoints, by None; removes -1 from a list."""
    if isinstance(value, list):
        return [item for item in value if item != -1] or None
    return None if value == -1 else value


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _INT64_MAX if isinstance(value, int) else math.isfinite(value)


def _display(value: Any) -> str:
    """Formats a value for an error message: truncates it to 200 characters; describes integers too large for repr."""
    if isinstance(value, int) and abs(value) > _INT64_MAX:
        return "a whole number beyond 64 bits"
    shown = repr(value)
    return shown if len(shown) < 200 else f"{shown[:200]}..."
