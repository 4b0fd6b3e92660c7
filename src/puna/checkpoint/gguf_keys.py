"""Typed access to GGUF metadata, with errors that name the key, its value and the expected type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from puna.config.checks import NO_TOKEN
from puna.errors import CheckpointError, show


class GgufKeys:
    """Reads typed values of GGUF metadata; raises CheckpointError for a wrong type or a missing key without default.

    Attributes:
        notes: values that change nothing, for the user.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.notes: list[str] = []

    def count(self, key: str, default: int | None = None) -> int:
        """Returns an integer of at least 1."""
        value = self.metadata.get(key, default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"metadata key {key!r} must be an integer of at least 1; it is {_shown(value)}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a finite number; for a float32 the shortest decimal that rounds to it (1e-5, not 9.99999975e-06)."""
        value = self.metadata.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f"metadata key {key!r} must be a finite number; it is {_shown(value)}")
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def text(self, key: str, default: str) -> str:
        """Returns a string."""
        value = self.metadata.get(key, default)
        if type(value) is not str:
            raise CheckpointError(f"metadata key {key!r} must be a string; it is {_shown(value)}")
        return value

    def token_id(self, key: str) -> int | None:
        """Returns a token id; None if the key is missing or its value is -1, signed or unsigned (no such token)."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if type(value) is int and value in NO_TOKEN:
            self.notes.append(f"{key} {value}: -1 means that there is no such token")
            return None
        if type(value) is not int or value < 0:
            raise CheckpointError(f"metadata key {key!r} must be a token id; it is {_shown(value)}")
        return value


def _shown(value: Any) -> str:
    return "missing" if value is None else show(value)
