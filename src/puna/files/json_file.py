"""Small JSON files, read with clear errors and written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.errors import ConfigError, ModelNotFoundError, PunaError
from puna.files.atomic_file import atomic_write

JSON_LIMIT = 32 * 2**20
"""Maximum size of a JSON file in bytes. Indexes and configurations in use have less than 1 MB. As Python objects, they
need about twenty times their size in memory."""


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
    """Reads a JSON object; raises `error` with the file's name if the file does not contain a JSON object."""
    try:
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: no such file")
        size = path.stat().st_size
        if size > JSON_LIMIT:
            raise error(f"{path}: {size} bytes of JSON; the limit is {JSON_LIMIT}. Is this the right file?")
        value = json.loads(path.read_bytes())
    except PunaError:
        raise
    except OSError as exc:
        raise error(f"{path} cannot be read ({exc.strerror}); check its permissions") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{path}: not valid JSON ({exc}); download the file again") from exc
    if not isinstance(value, dict):
        raise error(f"{path}: contains a JSON {type(value).__name__}; it must be an object")
    return value
