"""Checks of single fields: the error names field, value and limit."""

from __future__ import annotations

from typing import Any

from puna.errors import ConfigError


def check_whole(name: str, value: Any, low: int = 1) -> None:
    """Raises ConfigError unless `value` is an int of at least `low` (a bool is not an int here)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, {low} or more")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a number from `low` to `high`; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must lie between {low} and {high}")


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; it must be true or false")
