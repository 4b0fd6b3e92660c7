"""Merges the processors or criteria that `generate()` builds from its settings with those of the caller."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any


def merge_lists(built: Iterable[Any], custom: Iterable[Any]) -> list[Any]:
    """Returns both lists joined; the caller's object replaces one of the same class, with a warning.

    A class of transformers counts as the class of the same name in puna.
    """
    custom = list(custom)
    merged = []
    for default in built:
        replacement = next((other for other in custom if _same_class(other, default)), None)
        if replacement is None:
            merged.append(default)
            continue
        name = type(default).__name__
        warnings.warn(
            f"{name} was passed to generate(), and the settings also require one; the one that was passed is used. "
            "Remove one of the two",
            stacklevel=2,
        )
        merged.append(replacement)
    return [*merged, *(other for other in custom if not any(other is item for item in merged))]


def _same_class(custom: object, default: object) -> bool:
    kind, expected = type(custom), type(default)
    foreign = kind.__module__.partition(".")[0] == "transformers"
    return kind is expected or (foreign and kind.__name__ == expected.__name__)
