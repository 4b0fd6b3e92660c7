"""Parses names of models on the hub: `owner/name`, `owner/name@revision`, `owner/name:part`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from puna.errors import RequestError

_REFERENCE = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w./-]{1,250}))?(:(?P<part>[\w.-]{1,96}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Reference:
    """A model on the hub: "owner/name", optionally a branch, tag or commit, and part of the name of a GGUF file."""

    id: str
    revision: str | None = None
    part: str | None = None

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.part}" if self.part else "")


def parse(text: str | Path) -> Reference | None:
    """Parses a reference; returns None if `text` is an existing path or does not have the form of a reference."""
    try:
        return None if Path(text).exists() else _match(str(text))
    except OSError:  # the path exists, but cannot be read
        return None


def read_reference(text: str) -> Reference:
    """Parses a reference.

    Raises:
        RequestError: `text` does not have the form of a reference.
    """
    reference = _match(text)
    if reference is None:
        raise RequestError(
            f"{text!r:.120} is not a model of the hub; give owner/name, owner/name@revision or owner/name:part"
        )
    return reference


def _match(text: str) -> Reference | None:
    match = _REFERENCE.fullmatch(text)
    return None if match is None or ".." in text else Reference(match["id"], match["revision"], match["part"])
