"""The name of a model of the hub: `owner/name`, `owner/name@revision`, `owner/name:part`."""

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
    """A model of the hub: `owner/name`, a branch, tag or commit, and part of the name of one GGUF file."""

    id: str
    revision: str | None = None
    part: str | None = None

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.part}" if self.part else "")


def parse(text: str | Path) -> Reference | None:
    """The reference that `text` is; None where it is something on this machine, or can only be a path."""
    try:
        return None if Path(text).exists() else _matched(str(text))
    except OSError:  # a path that may not be read is a path
        return None


def read_reference(text: str) -> Reference:
    """The reference that `text` must be.

    Raises:
        RequestError: it is none.
    """
    found = _matched(text)
    if found is None:
        raise RequestError(
            f"{text!r:.120} is no model of the hub; give owner/name, owner/name@revision or owner/name:part"
        )
    return found


def _matched(text: str) -> Reference | None:
    found = _REFERENCE.fullmatch(text)
    return None if found is None or ".." in text else Reference(found["id"], found["revision"], found["part"])
