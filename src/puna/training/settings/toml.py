"""The TOML file of a run: reads and writes all settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from puna.errors import ConfigError, show, suggestion
from puna.training.settings.all import GROUPS, TrainingSettings
from puna.training.settings.option import checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST = 1 << 20
"""Maximum size of a file of settings, in bytes."""


def read_settings(path: str | Path) -> dict[str, Any]:
    """Returns the options in a TOML file by name; `TrainingSettings.of` checks them together.

    Relative paths stay as they are: they refer to the current directory, as on the command line.

    Raises:
        ConfigError: the file cannot be read, or has a section or option that does not exist, or a value that is
            not valid.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read ({exc.strerror or exc}); give the path of a TOML file") from exc
    if len(data) > _LARGEST:
        raise ConfigError(f"{path} has {len(data)} bytes; a file of settings has at most {_LARGEST}")
    return _flat(path, parse_toml(path, data))


def parse_toml(path: Path, data: bytes) -> dict[str, Any]:
    """Returns the content of a TOML file; raises ConfigError if it is not valid."""
    try:
        content: dict[str, Any] = tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{path}, line {line}: byte {exc.start + 1} of the file (0x{data[exc.start]:02x}) is not UTF-8; convert "
            "the file, for example with iconv -f LATIN1 -t UTF-8"
        ) from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is not valid TOML ({exc}); correct this line") from exc
    return content


def _flat(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of all sections."""
    homes = {item.name: name for name, group in GROUPS.items() for item in fields(group)}
    options = {item.name: item for item in fields(TrainingSettings)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        is_section = key in GROUPS and isinstance(value, Mapping)
        for name, item in value.items() if is_section else [(key, value)]:
            section = f"[{key}] " if is_section else ""
            if name not in homes:
                raise ConfigError(f"{path}: {section}{show(name)} is not an option{suggestion(name, homes)}")
            if is_section and homes[name] != key:
                raise ConfigError(f"{path}: {section}{name} belongs in the section [{homes[name]}]; move it there")
            if name in values:
                raise ConfigError(f"{path}: {name} is set twice; remove one of the two")
            try:
                values[name] = checked(TrainingSettings, options[name], item)
            except ConfigError as exc:
                raise ConfigError(f"{path}: {section}{exc}") from exc
    return values


def settings_text(settings: TrainingSettings) -> str:
    """Returns the TOML file of all settings, with the description of each option as a comment."""
    lines = []
    for name, group in GROUPS.items():
        if name != "run":
            lines += ["", f"[{name}]"]
        for item in fields(group):
            value = getattr(settings, item.name)
            comment = f"  # {item.metadata['text']}"
            lines.append(
                f"# {item.name} is not set:{comment[3:]}" if value is None else f"{item.name} = {_text(value)}{comment}"
            )
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    """Returns a value in TOML, whose strings, numbers and lists are those of JSON, but for DEL."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(str(key))} = {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) or "." in repr(value) else repr(value).replace("e", ".0e")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
