"""The command line that trains with given settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from puna.training.settings import TrainingSettings

ALIASES = {"output": "-o", "model": "-m", "data": "-d"}
"""Short options of the command, by the name of the setting."""


def flag(name: str) -> str:
    """Returns the option of the command for a setting, such as --batch-size."""
    return f"--{name.replace('_', '-')}"


def command_line(settings: TrainingSettings, defaults: Mapping[str, Any] | None = None) -> str:
    """Returns the command `puna train ...` with the options that differ from their defaults.

    Args:
        defaults: those of the task, where they differ from those of the settings.
    """
    words = ["puna", "train", settings.task]
    for item in fields(settings):
        value = getattr(settings, item.name)
        default = (defaults or {}).get(item.name, item.default)
        if item.name not in ("task", "resume") and value is not None and value != default:
            words += _words(item.name, value)
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name) if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, Mapping):
        return [word for key, item in value.items() for word in (flag(name), f"{key}={item}")]
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return [word for item in value for word in (flag(name), item)]
    if isinstance(value, tuple):
        return [flag(name), ",".join(f"{item:g}" for item in value)]
    return [flag(name), str(value)]
