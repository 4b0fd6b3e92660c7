"""Folders that change atomically: files are written in a staging folder and published by renaming.

A process that is killed at any moment leaves the old content, the new content, or a folder that no reader accepts and
from which the old content can be restored; it never leaves a mixture that loads. There are two uses:

- `temporary_staging` and `replace_files`: new files replace some files of a folder, which keeps the other files
  (save_pretrained). The staging folder is inside that folder and disappears at the end.
- `resumable_staging` and `publish`: the destination, a folder or a single file, is replaced as a whole (conversions).
  The staging folder is next to the destination. After an interruption it stays, and a run with the same record resumes
  with its files; a run with another record deletes them.

Downloads from the hub have the same guarantee from huggingface_hub, which renames each file and links a snapshot to it.

    folder/.saving-*, folder/.old-*    staging folder of new files; old files while the new ones replace them
    .NAME.puna-partial                 staging folder of NAME, with the record and a lock
    .NAME.puna-old                     the old NAME while the new one replaces it
    .NAME.puna-gone                    the old NAME while it is deleted, or its remains if the deletion was interrupted
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from puna.errors import CheckpointError, StorageError
from puna.files.atomic_file import storage_errors
from puna.files.json_file import write_json

RECORD, LOCK = ".puna-conversion.json", ".lock"


def partial_folder(destination: Path) -> Path:
    """Returns the staging folder of `destination`, a folder or file."""
    return destination.parent / f".{destination.name}.puna-partial"


def replaced_path(destination: Path) -> Path:
    """Returns the path of the old `destination` while the new one replaces it."""
    return destination.parent / f".{destination.name}.puna-old"


def working_paths(destination: Path) -> tuple[Path, Path, Path]:
    """Returns the staging folder, and the paths of the old `destination` while replaced and while deleted."""
    deleted = destination.parent / f".{destination.name}.puna-gone"
    return partial_folder(destination), replaced_path(destination), deleted


@contextmanager
def temporary_staging(folder: Path) -> Iterator[Path]:
    """Yields a staging folder inside `folder`; creates `folder` if needed, and removes it again if the block fails."""
    with _create_folder(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging:
        yield Path(staging)


def replace_files(staging: Path, folder: Path, names: Sequence[str], outdated: Sequence[str]) -> None:
    """Moves the files `names` from `staging` to `folder` and removes the files `outdated` from `folder`.

    The last of `names` is the key file, without which no reader accepts the folder. It is moved out first and in last,
    so that a process killed at any moment leaves the old files, the new files, or a folder that is refused, with the
    old files in a folder `.old-...` inside. If only one file differs, a single rename replaces it.

    Raises:
        OSError: a file cannot be moved; the old files are restored.
        CheckpointError: the old files cannot be restored either; the message contains their folder.
    """
    key, present = names[-1], {path.name for path in folder.iterdir()}
    different = [name for name in names if not _same_json(staging / name, folder / name)]
    if len(different) == 1 and not outdated:
        (staging / different[0]).replace(folder / different[0])
        return
    entering = [*(name for name in different if name != key), key]
    leaving = [name for name in (key, *outdated, *entering[:-1]) if name in present]
    old = Path(tempfile.mkdtemp(dir=folder, prefix=".old-"))
    moves = [(folder / name, old / name) for name in leaving] + [(staging / name, folder / name) for name in entering]
    attempts: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            attempts.append((source, target))  # recorded first, since Ctrl-C may come before the move ends
            source.replace(target)
    except BaseException:
        _undo(attempts, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _same_json(one: Path, other: Path) -> bool:
    """Whether two JSON files are equal. Weights always count as different: they are too large to compare."""
    return one.suffix == ".json" and other.is_file() and one.read_bytes() == other.read_bytes()


def _undo(moves: Sequence[tuple[Path, Path]], old: Path) -> None:
    try:
        for source, target in reversed(moves):
            with suppress(FileNotFoundError):  # the move that failed
                target.replace(source)
        old.rmdir()
    except OSError as exc:
        raise CheckpointError(
            f"{old.parent}: files could neither be moved nor moved back ({exc}); those of the earlier save are in "
            f"{old.name}, move them back"
        ) from exc


@contextmanager
def resumable_staging(destination: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yields the staging folder of `destination`, with the complete files of an interrupted run that had this record.

    The folder is locked while the block runs, and removed if the block fails before any file is complete.

    Args:
        record: everything that determines the files.

    Raises:
        StorageError: another process is writing `destination`, or the folder cannot be created or lacks a record.
    """
    staging = partial_folder(destination)
    with _create_folder(staging, destination), _lock_staging(staging, destination):
        if _completed_files(staging) and not (staging / RECORD).is_file():
            raise StorageError(f"{staging}, the staging folder of {destination}, holds other files; move them")
        try:
            if _read(staging / RECORD) != json.loads(json.dumps(record)):
                with storage_errors(destination):
                    _clear(staging)
                    write_json(staging / RECORD, record)
            for incomplete in staging.glob(".*.tmp"):
                incomplete.unlink()
            yield staging
        except BaseException:
            if not _completed_files(staging):  # there is nothing to resume
                shutil.rmtree(staging, ignore_errors=True)
            raise


def publish(staging: Path, destination: Path, single: str | None, overwrite: bool) -> None:
    """Renames the staging folder, or its file `single` if given, to `destination`.

    The old `destination` is deleted afterwards. Without `overwrite`, it may only be an empty folder.

    Raises:
        StorageError: `destination` exists and `overwrite` is false, or a rename fails.
    """
    with storage_errors(destination):
        _sync(staging)
        if not overwrite and is_taken(destination):
            raise StorageError(f"{destination} was created in the meantime; move it, and repeat the command to resume")
        _delete_replaced(destination)
        if overwrite and (destination.exists() or destination.is_symlink()):
            destination.replace(replaced_path(destination))
        # A process killed here leaves the old files in `replaced_path` and the new ones in `staging`, both complete;
        # the next run finds them there.
        (staging if single is None else staging / single).replace(destination)
        _sync(destination.parent)
        _delete_replaced(destination)
        if single is not None:
            shutil.rmtree(staging, ignore_errors=True)
        else:
            for name in (RECORD, LOCK):
                (destination / name).unlink(missing_ok=True)


def restore_replaced(destination: Path) -> None:
    """Restores `destination` if a run was killed while replacing it; raises StorageError if a run replaces it now."""
    old, staging = replaced_path(destination), partial_folder(destination)
    if not old.exists() or is_taken(destination):
        return
    with _lock_staging(staging, destination) if staging.exists() else nullcontext(), storage_errors(destination):
        if not is_taken(destination):
            old.replace(destination)


def is_taken(path: Path) -> bool:
    """Whether `path` exists and is not an empty folder; a link to an empty folder counts as existing."""
    return path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir())))


@contextmanager
def _create_folder(folder: Path, destination: Path | None = None) -> Iterator[None]:
    """Creates a folder and its parents; if the block fails, removes the folders created here if they are empty."""
    with storage_errors(destination or folder):
        created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with storage_errors(destination or folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in created:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _lock_staging(staging: Path, destination: Path) -> Iterator[None]:
    """Locks the staging folder for this process; the lock ends with the process, even if it is killed."""
    with storage_errors(destination):
        handle = os.open(staging / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        with storage_errors(destination):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise StorageError(
                    f"{destination}: another process is writing it now; wait, or choose another name"
                ) from exc
        yield
    finally:
        os.close(handle)


def _delete_replaced(destination: Path) -> None:
    """Deletes the old `destination`; renames it first, so that a partly deleted one is never restored."""
    _, old, deleted = working_paths(destination)
    _remove(deleted)
    if old.exists() or old.is_symlink():
        old.replace(deleted)
        _remove(deleted)


def _completed_files(staging: Path) -> list[Path]:
    return [path for path in staging.iterdir() if path.name not in (RECORD, LOCK)] if staging.is_dir() else []


def _clear(staging: Path) -> None:
    for path in (*_completed_files(staging), staging / RECORD):
        _remove(path)


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
