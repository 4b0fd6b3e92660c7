"""Checks of the values in a row. Each error names the file, the line, the column and the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from puna.errors import DataError, show_json
from puna.training.batch import Source


def read_text(value: Any, name: str, source: Source) -> str:
    """Returns a text; raises DataError for another value, or a text that UTF-8 cannot represent."""
    if not isinstance(value, str):
        raise DataError(f"{source}: {name} is {show_json(value)}; it must be a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise DataError(
                f"{source}: {name} contains half of a surrogate pair ({value[exc.start]!a}); write the character itself"
            ) from exc
    return value


def read_answer(value: Any, name: str, source: Source) -> str:
    """Returns a text with more than white space; raises DataError."""
    text = read_text(value, name, source)
    if not text.strip():
        raise DataError(f"{source}: {name} is empty, so there is nothing to learn; write the answer, or remove the row")
    return text


def read_optional_text(value: Any, name: str, source: Source) -> str:
    """Returns a text, "" for None; raises DataError."""
    return "" if value is None else read_text(value, name, source)


def read_list(value: Any, name: str, source: Source) -> list[Any]:
    """Returns a list, also one written as JSON text, as in CSV files; raises DataError."""
    value = parse_json_text(value)
    if hasattr(value, "tolist"):  # arrays, as pandas reads lists of Parquet files
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise DataError(f"{source}: {name} is {show_json(value)}; it must be a list")
    return list(value)


def read_weight(value: Any, name: str, source: Source) -> float:
    """Returns a weight of the loss, at least 0; raises DataError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DataError(
            f"{source}: {name} is {show_json(value)}; it must be 0 (not learned), 1, or another number above 0"
        )
    return float(value)


def parse_json_text(value: Any) -> Any:
    """Returns the value of a text that is a JSON list or object; any other value unchanged."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def need_mapping(value: Any, name: str, source: Source, example: str) -> Mapping[str, Any]:
    """Returns an object; raises DataError with an example of one."""
    if not isinstance(value, Mapping):
        raise DataError(f"{source}: {name} is {show_json(value)}; it must be an object such as {example}")
    return value
