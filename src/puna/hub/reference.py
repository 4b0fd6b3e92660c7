"""Parses names of models and data sets on the hub: `owner/name`, `owner/name@revision`, `owner/name:part`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from puna.errors import RequestError, show
from puna.files import path_argument

_CACHE_PREFIX = "models--"
_DATA_SET_PREFIX = "datasets--"
_REVISION = r"\w[\w./-]{0,249}"

_REFERENCE = re.compile(
    rf"(?P<id>[A-Za-z0-9][\w.-]{{0,95}}/[A-Za-z0-9][\w.-]{{0,95}})(@(?P<revision>{_REVISION}))?(:(?P<part>[\w.-]{{1,96}}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Reference:
    """A model or data set on the hub: "owner/name", optionally a branch, tag or commit, and part of a file's name.

    Attributes:
        part: part of the name of a GGUF file, or of the path of a data file.
        kind: as huggingface_hub names it.
    """

    id: str
    revision: str | None = None
    part: str | None = None
    kind: Literal["model", "dataset"] = "model"

    @property
    def noun(self) -> str:
        """The word for the kind, for messages."""
        return "model" if self.kind == "model" else "data set"

    def at(self, revision: str | None) -> Reference:
        """Returns the same model at another revision; None keeps the revision.

        Raises:
            RequestError: `revision` cannot be the name of a branch, tag or commit.
        """
        if revision is None:
            return self
        if not isinstance(revision, str) or not re.fullmatch(_REVISION, revision, re.ASCII) or ".." in revision:
            raise RequestError(f"revision={show(revision)} is not the name of a branch, a tag or a commit")
        return replace(self, revision=revision)

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.part}" if self.part else "")


def parse(text: str | Path) -> Reference | None:
    """Parses a reference; returns None if `text` is an existing path or does not have the form of a reference."""
    path = path_argument(text, "the path or name of the model")
    try:
        return None if path.exists() else _match(str(text))
    except OSError:  # the path exists, but cannot be read
        return None


def cache_name(model: str, kind: Literal["model", "dataset"] = "model") -> str:
    """Returns the name of a folder in the hub's cache: models--owner--name, or for a data set datasets--owner--name."""
    return (_CACHE_PREFIX if kind == "model" else _DATA_SET_PREFIX) + model.replace("/", "--")


def cached_model(folder: str) -> str | None:
    """Returns owner/name for the name of a model's folder in the hub's cache; None for any other name."""
    owner, separator, name = folder.removeprefix(_CACHE_PREFIX).partition("--")
    return f"{owner}/{name}" if folder.startswith(_CACHE_PREFIX) and separator else None


def read_reference(text: str) -> Reference:
    """Parses a reference.

    Raises:
        RequestError: `text` does not have the form of a reference.
    """
    reference = _match(text)
    if reference is None:
        raise RequestError(
            f"{show(text)} is not a model of the hub; give owner/name, owner/name@revision or owner/name:part"
        )
    return reference


def _match(text: str) -> Reference | None:
    match = _REFERENCE.fullmatch(text)
    return None if match is None or ".." in text else Reference(match["id"], match["revision"], match["part"])
