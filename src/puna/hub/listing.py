"""The files of a repository, as the hub lists them. Every part of the answer is checked before it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from puna.errors import show
from puna.hub.reference import Reference

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit id: the only revision that may become part of a path."""

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class UnexpectedAnswerError(ValueError):
    """The hub's answer is not a listing: a login page, a proxy's error, or a listing with impossible values."""


@dataclass(frozen=True)
class RemoteFile:
    """A file in the listing.

    Attributes:
        size: in bytes; None if the hub does not announce it.
        digest: SHA-256 of the content for large files, Git's blob id for small files; "" if not announced.
    """

    size: int | None
    digest: str


@dataclass(frozen=True)
class Listing:
    """The commit to which a revision refers, and its files by name."""

    commit: str
    files: Mapping[str, RemoteFile]


def list_files(reference: Reference, token: str | bool | None) -> Listing:
    """Asks the hub for the files of a revision.

    Raises:
        UnexpectedAnswerError: the answer is not a listing.
        Exception: errors of `huggingface_hub` for refusals, and of its HTTP library for failed connections.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        ask = api.model_info if reference.kind == "model" else api.dataset_info
        info = ask(reference.id, revision=reference.revision, files_metadata=True, token=token)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:  # the answer is not JSON, or lacks a field
        if isinstance(exc, OSError):  # huggingface_hub's errors are both OSError and ValueError
            raise
        raise UnexpectedAnswerError(str(exc)) from exc
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise UnexpectedAnswerError(f"the commit is {show(info.sha)}, not 40 hexadecimal digits")
    if not isinstance(info.siblings, list):
        raise UnexpectedAnswerError(f"the files are {show(info.siblings)}, not a list")
    return Listing(info.sha, dict(_read_file(item) for item in info.siblings))


def _read_file(item: Any) -> tuple[str, RemoteFile]:
    name, size = item.rfilename, item.size
    if not isinstance(name, str) or not _is_safe(name):
        raise UnexpectedAnswerError(f"{show(name)} is not the name of a file in a repository")
    if size is not None and (not isinstance(size, int) or size < 0):
        raise UnexpectedAnswerError(f"{name} has a size of {show(size)}")
    digest = item.lfs.sha256 if item.lfs is not None else item.blob_id
    return name, RemoteFile(size, digest if is_digest(digest) else "")


def _is_safe(name: str) -> bool:
    """Whether a name stays inside the folder to which it is appended."""
    path = PurePosixPath(name)
    return (
        name.isprintable()
        and "\\" not in name
        and not path.is_absolute()
        and path.parts != ()
        and ".." not in path.parts
    )


def is_digest(text: object) -> bool:
    """Whether a text is a SHA-256 or a blob id of Git, in hexadecimal digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None
