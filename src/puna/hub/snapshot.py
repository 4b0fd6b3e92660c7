"""Snapshots in the hub's cache: finding a commit's folder, recording a branch's commit, verifying downloaded files.

The layout is that of `huggingface_hub` (docs: "Understand caching"): models--owner--name/refs/BRANCH contains a commit,
snapshots/COMMIT/NAME is a link to blobs/ETAG.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from puna.errors import CheckpointError
from puna.files import atomic_write, make_folder
from puna.hub.listing import COMMIT, RemoteFile, is_digest
from puna.hub.reference import Reference, cache_name

_READ_SIZE = 2**22


def snapshot_folder(cache: Path, reference: Reference, commit: str) -> Path:
    """Returns the folder of a commit, which may not exist."""
    return _repository(cache, reference) / "snapshots" / commit


def cached_snapshot(cache: Path, reference: Reference) -> Path | None:
    """Returns the folder of the commit to which the reference referred when it was last downloaded, or None."""
    commit = reference.revision or "main"
    if not COMMIT.fullmatch(commit):
        try:
            commit = _branch_file(cache, reference).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    folder = snapshot_folder(cache, reference, commit)
    return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None


def record_branch(cache: Path, reference: Reference, commit: str) -> None:
    """Records the commit of a branch or tag, so that the cache can be used without the hub."""
    if reference.revision == commit:
        return
    path = _branch_file(cache, reference)
    if path.is_file() and path.read_bytes() == commit.encode():
        return
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(commit.encode())


def is_complete(path: Path, announced: RemoteFile) -> bool:
    """Whether a file is in the cache and intact; deletes a damaged file.

    Compares the size, and the digest if the process that downloaded the file ended before it verified the file.
    """
    if not path.is_file():
        return False
    if announced.size is not None and path.stat().st_size != announced.size:
        _delete(path)
        return False
    if unverified_mark(path).exists():
        try:
            verify(path, announced)
        except CheckpointError:
            return False
    return True


def unverified_mark(path: Path) -> Path:
    """Returns the path of an empty file that exists while a file of a snapshot is downloaded and not yet verified."""
    snapshots = next(folder for folder in path.parents if folder.name == "snapshots")
    name = "--".join(path.relative_to(snapshots).parts)
    return snapshots.with_name("unverified") / name


def verify(path: Path, announced: RemoteFile) -> None:
    """Compares a downloaded file with the announced size and digest, or else with the digest that names its blob.

    Raises:
        CheckpointError: they differ; the file is deleted.
    """
    blob = path.resolve()
    expected = announced.digest or (blob.name if is_digest(blob.name) else "")
    size = blob.stat().st_size
    if announced.size is not None and size != announced.size:
        problem = f"{size:,} bytes, but the hub announced {announced.size:,}"
    elif expected and (actual := _digest(blob, size, len(expected) == 64)) != expected:
        problem = f"its digest is {actual}, but the hub announced {expected}"
    else:
        unverified_mark(path).unlink(missing_ok=True)
        return
    _delete(path)
    raise CheckpointError(f"{path.name} was damaged during the download ({problem}); it was deleted, download it again")


def _delete(path: Path) -> None:
    """Deletes a file of a snapshot: the link and the blob."""
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
    unverified_mark(path).unlink(missing_ok=True)


def _digest(path: Path, size: int, sha256: bool) -> str:
    """Returns the SHA-256 of a file, or its blob id in Git."""
    digest = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_READ_SIZE):
            digest.update(piece)
    return digest.hexdigest()


def _repository(cache: Path, reference: Reference) -> Path:
    return cache / cache_name(reference.id, reference.kind)


def _branch_file(cache: Path, reference: Reference) -> Path:
    return _repository(cache, reference) / "refs" / (reference.revision or "main")
