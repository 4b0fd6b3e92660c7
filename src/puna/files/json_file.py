"""Small JSON files, read with clear errors and written atomically."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from puna.errors import ConfigError, PunaError
from puna.files.atomic_file import atomic_write
from puna.files.reading import read_file

JSON_LIMIT = 16 * 2**20
"""Maximum size of a JSON file in bytes. Indexes and configurations in use have less than 1 MB."""

MAX_VALUES = 500_000
"""Maximum number of values in a JSON file. A value has at least 2 bytes in the file, and up to 100 in memory."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes `value` as indented JSON, atomically; raises ConfigError if JSON cannot hold it."""
    text = json_bytes(value, path.name)
    with atomic_write(path) as file:
        file.write(text)


def json_bytes(value: Mapping[str, Any], name: str) -> bytes:
    """Returns `value` as indented JSON for a file called `name`; raises ConfigError if JSON cannot hold it."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{name} would contain a value that JSON cannot hold: {exc}") from exc


def read_json(path: Path, error: type[PunaError]) -> dict[str, Any]:
    """Reads a JSON object; raises `error` with the file's name if the file does not contain one."""
    return parse_json(read_file(path, error, JSON_LIMIT), str(path), error)


def parse_json(
    data: bytes,
    name: str,
    error: type[PunaError],
    max_values: int = MAX_VALUES,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> dict[str, Any]:
    """Parses a JSON object; raises `error` if `data` is something else, or has more than `max_values` values.

    Args:
        name: the name of the file, for the message.
        pairs_hook: `object_pairs_hook` of `json.loads`.
    """
    # Every value but the first of a list or object follows a comma, and every key precedes a colon. Characters inside
    # strings are counted too: few, compared with the limit.
    values = sum(data.count(character) for character in (b",", b":", b"[", b"{"))
    if values > max_values:
        raise error(f"{name}: about {values} JSON values; the limit is {max_values}. Is this the right file?")
    try:
        value = json.loads(data, object_pairs_hook=pairs_hook)
    except PunaError:
        raise
    except MemoryError as exc:
        raise error(f"{name}: {len(data)} bytes of JSON need more memory than is free") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{name}: not valid JSON ({exc}); download the file again") from exc
    if not isinstance(value, dict):
        raise error(f"{name}: contains a JSON {type(value).__name__}; it must be an object")
    return value
