"""Checks of single configuration fields. Each error names the field, its value and the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from puna.errors import ConfigError, show

_INT64_MAX = 2**63 - 1
"""The largest integer of tensor libraries; JSON integers are unbounded."""

NO_TOKEN = (-1, 2**32 - 1, 2**64 - 1)
"""Ids that mean "no such token": -1, which some converters write as an unsigned integer of 32 or 64 bits."""

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_DTYPE_ALIASES = {"float": "float32", "half": "float16", "double": "float64"}
"""PyTorch's other names of its types."""


def check_whole(name: str, value: Any, low: int = 1, high: int = _INT64_MAX) -> None:
    """Raises ConfigError unless `value` is an int from `low` to `high` (bools are rejected)."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        highest = "2^63 - 1" if high == _INT64_MAX else str(high)
        limit = f"from {low} to {highest}" if isinstance(value, int) and value > high else f"{low} or more"
        raise ConfigError(f"{name} is {show(value)}; it must be a whole number, {limit}")


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raises ConfigError unless `value` is a finite number from `low` to `high`."""
    if not _is_finite(value) or not low <= value <= high:
        raise ConfigError(f"{name} is {show(value)}; it must be between {low} and {high}")


def check_positive(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ConfigError unless it is a finite number above 0."""
    if not _is_finite(value) or value <= 0:
        raise ConfigError(f"{name} is {show(value)}; it must be a positive number")
    return float(value)


def check_flag(name: str, value: Any) -> None:
    """Raises ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {show(value)}; it must be true or false")


def absent_if_minus_one(value: Any) -> Any:
    """Replaces the token id -1, signed or unsigned, by None; removes it from a list. A tensor becomes a list."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [item for item in value if item not in NO_TOKEN] or None
    return None if value in NO_TOKEN else value


def minus_one_notes(fields: Mapping[str, Any]) -> list[str]:
    """Returns a note on each token id that `absent_if_minus_one` changes."""
    ids = {name: fields.get(name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    unset = {name: value for name, value in ids.items() if absent_if_minus_one(value) != value}
    reasons = {name: "an empty list" if value == [] else "-1" for name, value in unset.items()}
    return [f"{name} {value}: {reasons[name]} means that there is no such token" for name, value in unset.items()]


def dtype_name(dtype: Any) -> str | None:
    """Returns the name of a type: `dtype` is its name, or a `torch.dtype`, which prints as torch.<name>.

    "auto" means the type of the stored weights. It is not known here, so it becomes None, as if there were no `dtype`.
    """
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    name = _DTYPE_ALIASES.get(name, name)
    if name not in _DTYPES:
        raise ConfigError(f"dtype is {show(dtype)}; it must be one of {', '.join(_DTYPES)}, or 'auto'")
    return name


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _INT64_MAX if isinstance(value, int) else math.isfinite(value)


def torch_dtype(name: str | None) -> Any:
    """Returns the `torch.dtype` of this name; the name itself if PyTorch is not installed."""
    if name is None:
        return None
    try:
        import torch
    except ImportError:
        return name
    return getattr(torch, name)


def text_value(name: str, text: str, current: Any) -> Any:
    """Converts the text of an attribute's new value to the type of its current value.

    Raises:
        ConfigError: the text does not represent a value of this type, or values of this type cannot be set from a text.
    """
    if isinstance(current, bool):
        for value, words in ((True, ("true", "1", "y", "yes")), (False, ("false", "0", "n", "no"))):
            if text.lower() in words:
                return value
        raise ConfigError(f"{name}={show(text)}: the value must be true or false")
    if not isinstance(current, int | float | str):
        raise ConfigError(f"{name} is {show(current)}; only numbers, booleans and strings can be set from a text")
    try:
        return type(current)(text)
    except ValueError as exc:
        raise ConfigError(f"{name}={show(text)}: the value must be a number, such as {current!r}") from exc
