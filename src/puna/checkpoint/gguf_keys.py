"""Typed access to GGUF metadata: a value is there with the right type, or the error says which key is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from puna.errors import CheckpointError

_NO_ID = 2**32 - 1
"""An unsigned -1: some converters write it for a token that does not exist."""


class GgufKeys:
    """Metadata read by type."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata

    def whole(self, key: str, default: int | None = None) -> int:
        """A count of 1 or more; without a default the key must be there."""
        value = self.metadata.get(key, default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"metadata key {key!r} is {_shown(value)}; a whole number, 1 or more, is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; of a float32 the shortest decimal that rounds to it, 1e-5 for 9.99999975e-06."""
        value = self.metadata.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f"metadata key {key!r} is {_shown(value)}; a finite number is needed")
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.metadata.get(key, default)
        if type(value) is not str:
            raise CheckpointError(f"metadata key {key!r} is {_shown(value)}; a string is needed")
        return value

    def token_id(self, key: str) -> int | None:
        """A token id, or None where there is none."""
        value = self.metadata.get(key)
        if value is None or value in (-1, _NO_ID):
            return None
        if type(value) is not int or value < 0:
            raise CheckpointError(f"metadata key {key!r} is {_shown(value)}; a token id is needed")
        return value


def _shown(value: Any) -> str:
    return "absent" if value is None else repr(value)[:80]
