"""Output that appears atomically and can be resumed: a folder or file replaces its destination when it is complete.

The new files are written into a staging folder next to the destination, and published by renaming. A process that is
killed at any moment leaves the old content or the new content at the destination, or nothing there and both in the
staging folder; the next run for this destination restores the old content and removes the leftover files.

    .NAME.puna-XXXXXXXX/    staging folder of the destination NAME; the X are random
        .puna-conversion.json   the destination's name, and everything that determines the files
        .lock                   locked while a process uses the staging folder
        new/                    the new files
        old                     the old NAME while the new one replaces it
        deleted                 the old NAME while it is deleted, or its remains if that was interrupted

The name is random and the folder private, so that nobody else can create it in advance. A folder counts as a
staging folder only if it belongs to this user and contains the record of this destination, or nothing yet: other files
with similar names are never touched.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from puna.errors import StorageError
from puna.files.atomic_file import make_parents, storage_errors
from puna.files.json_file import write_json

_RECORD, _LOCK = ".puna-conversion.json", ".lock"
_NEW, _OLD, _DELETED = "new", "old", "deleted"

_NAME_LENGTH = 40
"""Characters of the destination's name that the name of a staging folder repeats: names are limited to 255 bytes."""


@contextmanager
def resumable_staging(destination: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a folder for the new files, with the complete files of an interrupted run that had this record.

    The staging folder is locked while the block runs, and removed if the block fails before any file is complete. Files
    of an interrupted run with another record are deleted.

    Args:
        record: everything that determines the files.

    Raises:
        StorageError: another process is writing `destination`, or the folder cannot be created.
    """
    content = json.loads(json.dumps({"destination": destination.name, **record}))
    with make_parents(destination.parent, destination), _open_staging(destination, content) as staging:
        new = staging / _NEW
        try:
            with storage_errors(destination):
                if _read(staging / _RECORD) != content:
                    _remove(new)
                    write_json(staging / _RECORD, content)
                new.mkdir(exist_ok=True)
                for incomplete in new.glob(".*.tmp"):
                    incomplete.unlink()
            yield new
        except BaseException:
            if not _has_files(new):  # there is nothing to resume
                _discard(staging)
            raise


def publish(new: Path, destination: Path, file_name: str | None, overwrite: bool) -> None:
    """Renames the folder of new files, or its file `file_name` if given, to `destination`.

    The old `destination` is deleted afterwards. Without `overwrite`, it may only be an empty folder.

    Raises:
        StorageError: `destination` exists and `overwrite` is false, or a rename fails.
    """
    staging = new.parent
    old = staging / _OLD
    with storage_errors(destination):
        _sync(new)
        if not overwrite and is_occupied(destination):
            raise StorageError(f"{destination} was created in the meantime; move it, and repeat the command to resume")
        try:
            if overwrite and (destination.exists() or destination.is_symlink()):
                destination.replace(old)
            (new if file_name is None else new / file_name).replace(destination)
        except BaseException:
            _restore(old, destination)
            raise
        _sync(destination.parent)
        _discard(staging)


def recover(destination: Path) -> None:
    """Completes the work of runs that were killed: restores the old `destination`, and removes leftover files.

    Raises:
        StorageError: another process is replacing `destination` now.
    """
    with storage_errors(destination):
        for staging in staging_folders(destination):
            with _locked(staging) as is_locked:
                old = staging / _OLD
                if is_locked:
                    _restore(old, destination)
                    if not _has_files(staging / _NEW):
                        _discard(staging)
                elif _exists(old) and not is_occupied(destination):
                    raise _in_use(destination)


def staging_folders(destination: Path) -> list[Path]:
    """Returns the staging folders of `destination`: one after an interrupted run, otherwise none."""
    candidates = destination.parent.glob(glob.escape(_prefix(destination)) + "*")
    return [path for path in sorted(candidates) if _is_staging(path, destination)]


def is_occupied(path: Path) -> bool:
    """Whether `path` exists and is not an empty folder; a link to an empty folder counts as existing."""
    return path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir())))


def _prefix(destination: Path) -> str:
    return f".{destination.name[:_NAME_LENGTH]}.puna-"


def _is_staging(path: Path, destination: Path) -> bool:
    """Whether a folder belongs to this user and contains the record of `destination`, or is private and empty."""
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return False
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    record = _read(path / _RECORD)
    if isinstance(record, dict):
        return record.get("destination") == destination.name
    return stat.S_IMODE(status.st_mode) == 0o700 and all(name in (_LOCK, _RECORD) for name in names)


@contextmanager
def _open_staging(destination: Path, content: object) -> Iterator[Path]:
    """Yields a locked staging folder, an existing one if there is any; raises StorageError if one is locked already."""
    with ExitStack() as lock:
        with storage_errors(destination):
            existing = staging_folders(destination)
            staging = next((path for path in existing if _read(path / _RECORD) == content), None)
            staging = staging or (existing[0] if existing else _create(destination))
            try:
                is_locked = lock.enter_context(_locked(staging))
                # Two processes that create staging folders at the same time see each other here.
                others = [path for path in staging_folders(destination) if path != staging]
                if not is_locked or any(_is_locked(path) for path in others):
                    raise _in_use(destination)
            except BaseException:
                if not existing:
                    _discard(staging)
                raise
        yield staging


def _create(destination: Path) -> Path:
    staging = Path(tempfile.mkdtemp(prefix=_prefix(destination), dir=destination.parent))
    (staging / _LOCK).touch()
    return staging


@contextmanager
def _locked(staging: Path) -> Iterator[bool]:
    """Locks a staging folder, and yields whether that succeeded; the lock ends with the process, even if killed."""
    handle = os.open(staging / _LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _is_locked(staging: Path) -> bool:
    with _locked(staging) as is_free:
        return not is_free


def _in_use(destination: Path) -> StorageError:
    return StorageError(f"{destination}: another process is writing it now; wait, or choose another name")


def _restore(old: Path, destination: Path) -> None:
    if _exists(old) and not is_occupied(destination):
        old.replace(destination)


def _discard(staging: Path) -> None:
    """Deletes a staging folder; the record last, so that an interrupted deletion is completed by the next run.

    The old destination is renamed first, so that a partly deleted one is never restored.
    """
    old, deleted = staging / _OLD, staging / _DELETED
    _remove(deleted)
    if _exists(old):
        old.replace(deleted)
    for path in (deleted, staging / _NEW, staging / _RECORD, staging / _LOCK):
        _remove(path)
    with suppress(OSError):  # somebody put a file into the folder
        staging.rmdir()


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _sync(folder: Path) -> None:
    """Makes the renames in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
