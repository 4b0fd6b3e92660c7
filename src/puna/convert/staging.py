"""Where a conversion writes until it is whole: a folder beside its goal, which a later run goes on with.

The folder's name begins with a dot and ends with .puna-partial, so that nothing takes it for a model. It holds a record
of what is converted: only the same conversion goes on with it, any other starts anew. The goal appears by renaming.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from puna.errors import StorageError
from puna.files import storage_errors, write_json

_RECORD, _LOCK = ".puna-conversion.json", ".lock"


def partial_folder(goal: Path) -> Path:
    """The folder in which `goal`, a folder or file, is made."""
    return goal.parent / f".{goal.name}.puna-partial"


def replaced_path(goal: Path) -> Path:
    """Where the old `goal` is while the new one takes its place."""
    return goal.parent / f".{goal.name}.puna-old"


def _gone_path(goal: Path) -> Path:
    """Where the old `goal` is while it is deleted, and what is left of it if that was interrupted."""
    return goal.parent / f".{goal.name}.puna-gone"


def check_goal(goal: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    """Refuses a goal that is taken, and even with `overwrite` one that would cost a file or folder of the source.

    Where a run that was to replace the goal ended half-way, what was there is put back first.

    Raises:
        StorageError: the goal will not do.
    """
    try:
        here, current = goal.resolve(), Path.cwd()
    except (OSError, RuntimeError) as exc:  # links in a circle, a current folder that is gone
        raise StorageError(f"{goal} is no place to write to ({exc}); choose another name") from exc
    if here in (current, *current.parents):
        raise StorageError(f"{goal} is the current folder, or one around it; give the name of a new one")
    if goal.name in (_RECORD, _LOCK):
        raise StorageError(f"{goal}: puna keeps records under that name; choose another")
    used = [place(goal).resolve() for place in (partial_folder, replaced_path, _gone_path)]
    for source in sources:
        if any(place in (source.resolve(), *source.resolve().parents) for place in used):
            raise StorageError(f"{source} lies where {goal} is made; move it, or choose another name for the result")
        files = source.iterdir() if source.is_dir() else ()
        for path in (source, *files):
            # As it is named, since a link may lie here, and where it really is.
            for place in (path.parent.resolve() / path.name, path.resolve()):
                if here in (place, *place.parents):
                    raise StorageError(f"{goal} is, or holds, the model to be converted; choose another name")
    _restore(goal)
    if _is_taken(goal) and not overwrite:
        raise StorageError(f"{goal} exists already; choose another name, or give --overwrite to replace it")


def _restore(goal: Path) -> None:
    """Puts back what was at `goal`, unless another process is just replacing it."""
    old, place = replaced_path(goal), partial_folder(goal)
    if not old.exists() or _is_taken(goal):
        return
    with _locked(place, goal) if place.exists() else nullcontext(), storage_errors(goal):
        if not _is_taken(goal):
            old.replace(goal)


def _is_taken(goal: Path) -> bool:
    """Whether there is something at `goal`; an empty folder is as good as nothing, a link is not."""
    return goal.is_symlink() or (goal.exists() and not (goal.is_dir() and not any(goal.iterdir())))


@contextmanager
def partial(goal: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """The folder to write into. What an interrupted run of the same conversion finished is still in it.

    Args:
        record: everything that decides what is written.

    Raises:
        StorageError: another process is converting to `goal`, or the folder cannot be made.
    """
    place = partial_folder(goal)
    with storage_errors(goal):
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        place.mkdir(parents=True, exist_ok=True)
    with _locked(place, goal):
        if _finished(place) and not (place / _RECORD).is_file():
            raise StorageError(f"{place}, where {goal} is made, holds other files; move them")
        try:
            if _read(place / _RECORD) != json.loads(json.dumps(record)):
                with storage_errors(goal):
                    _empty(place)
                    write_json(place / _RECORD, record)
            for unfinished in place.glob(".*.tmp"):
                unfinished.unlink()
            yield place
        except BaseException:
            if not any(_finished(place)):  # nothing worth going on with: leave no trace
                shutil.rmtree(place, ignore_errors=True)
                for folder in made[1:]:
                    with suppress(OSError):
                        folder.rmdir()
            raise


def publish(place: Path, goal: Path, single: str | None, overwrite: bool) -> None:
    """Renames what is in `place` to `goal`: the folder itself, or the one file `single` of it.

    What was at `goal` before, an empty folder or with `overwrite` anything, goes once its place is taken.
    """
    with storage_errors(goal):
        _sync(place)
        old = replaced_path(goal)
        if not overwrite and _is_taken(goal):
            raise StorageError(f"{goal} has come into being meanwhile; move it, and repeat the command to go on")
        _delete(goal)
        if overwrite and (goal.exists() or goal.is_symlink()):
            goal.replace(old)
        # A process killed here leaves everything: the old files in `old`, the new ones in `place`, where the next run
        # finds them whole.
        (place if single is None else place / single).replace(goal)
        _sync(goal.parent)
        _delete(goal)
        if single is not None:
            shutil.rmtree(place, ignore_errors=True)
        else:
            for name in (_RECORD, _LOCK):
                (goal / name).unlink(missing_ok=True)


@contextmanager
def _locked(place: Path, goal: Path) -> Iterator[None]:
    """One process at a time; the lock ends with the process, however that ends."""
    with storage_errors(goal):
        handle = os.open(place / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        with storage_errors(goal):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise StorageError(
                    f"{goal}: another process is converting to it now; wait, or choose another name"
                ) from exc
        yield
    finally:
        os.close(handle)


def _delete(goal: Path) -> None:
    """Deletes what was at `goal`, under another name: half of it must never come back."""
    old, gone = replaced_path(goal), _gone_path(goal)
    _remove(gone)
    if old.exists() or old.is_symlink():
        old.replace(gone)
        _remove(gone)


def _finished(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.name not in (_RECORD, _LOCK)] if place.is_dir() else []


def _empty(place: Path) -> None:
    for path in place.iterdir():
        if path.name != _LOCK:
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
    """Makes renamings in `folder` last a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
