"""JSON objects of several kinds, distinguished by the value of one key: parts of messages, items, tools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from puna.errors import show
from puna.server.errors import unsupported
from puna.server.protocol.fields import Table
from puna.server.protocol.types import Absent, Reader, Type, invalid
from puna.server.settings import Limits


class Skipped(dict[str, Any]):
    """The unchanged object of a kind that this server skips."""


@dataclass(frozen=True)
class Tagged(Type):
    """Objects of several kinds.

    Attributes:
        kinds: the table of each kind.
        key: the key whose value is the kind.
        default: the kind of an object without the key; None makes the absence an error.
        refused: the reason and the remedy for each kind that is refused.
        skips: whether objects of all other kinds are accepted, and listed as ignored.
    """

    kinds: Mapping[str, Table]
    key: str = "type"
    default: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    skips: bool = False
    python = (dict,)

    def read(self, path: str, value: Any, reader: Reader) -> dict[str, Any]:
        """Returns the values of the kind's fields, or `Skipped`."""
        if not isinstance(value, dict):
            raise invalid(path, value, self.words(reader.limits))
        kind = value.get(self.key)
        kind = self.default if kind is None else kind
        if isinstance(kind, str) and kind in self.kinds:
            fields = {name: item for name, item in value.items() if name != self.key}
            return {**self.kinds[kind].read(path, fields, reader), self.key: kind}
        if isinstance(kind, str) and kind in self.refused:
            raise unsupported(path, f"{path} has the type {show(kind)}; {self.refused[kind]}")
        if isinstance(kind, str) and self.skips:
            reader.ignored.append(skipped(path, kind))
            return Skipped(value)
        key_path = f"{path}.{self.key}"
        if isinstance(kind, str):
            raise unsupported(key_path, f"{key_path} is {show(kind)}; the supported types are {', '.join(self.kinds)}")
        raise invalid(key_path, value.get(self.key, Absent()), " or ".join(f'"{name}"' for name in self.kinds))

    def words(self, limits: Limits) -> str:
        """Returns "an object" with the possible kinds."""
        return f"an object whose {self.key} is " + " or ".join(f'"{name}"' for name in self.kinds)

    def schema(self, limits: Limits) -> dict[str, Any]:
        """Returns the JSON schema."""
        return {"anyOf": [self._schema(kind, table.schema(limits)) for kind, table in self.kinds.items()]}

    def _schema(self, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
        properties = {**schema["properties"], self.key: {"enum": [kind, None] if kind == self.default else [kind]}}
        required = [*schema.get("required", ())] + ([] if kind == self.default else [self.key])
        return {**schema, "properties": properties, "required": required}


def skipped(path: str, kind: str) -> str:
    """Returns the entry for a skipped object in the list of ignored fields: its path and its kind."""
    return f"{path}={re.sub('[^A-Za-z0-9_.-]', '', kind)[:64]}"
