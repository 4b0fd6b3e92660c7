"""`CheckpointStore`: the states of a run in one folder: written atomically, verified when read, removed by policy."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from puna.errors import PunaError, StorageError, show_bytes
from puna.files import free_bytes, make_folder, storage_errors
from puna.training.checkpoints.state import State, read_state, sync_folder, write_state

_PREFIX, _STAGING, _RESERVE = "step-", ".saving-", ".reserve"
_RECORD_BYTES = 1 << 22
"""Reserved for state.json: the losses of 200,000 steps."""


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one of its causes, is a full disk, an exhausted quota or a limit of file sizes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


class CheckpointStore:
    """The folder of a run's states.

    Args:
        folder: created when the first state is saved.
        keep_last: number of latest states that are kept.
        keep_steps: states whose step is a multiple are kept, too; 0 for none.
    """

    def __init__(self, folder: Path, keep_last: int = 1, keep_steps: int = 0) -> None:
        self.folder, self._keep_last, self._keep_steps = folder, keep_last, keep_steps

    def steps(self) -> list[int]:
        """Returns the steps of the states, ascending."""
        names = [path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def path(self, step: int) -> Path:
        """Returns the folder of the state after a step."""
        return self.folder / f"{_PREFIX}{step:08}"

    def reserve(self, size: int) -> None:
        """Reserves disk space for one more state of `size` bytes, with which `save` succeeds on a full disk.

        Raises:
            StorageError: there is not enough space.
        """
        make_folder(self.folder)
        path, total = self.folder / _RESERVE, size + _RECORD_BYTES
        free = free_bytes(self.folder) + (path.stat().st_size if path.exists() else 0)
        if free < 2 * total:
            raise StorageError(
                f"{self.folder}: {show_bytes(free)} are free, but the states of this run need {show_bytes(2 * total)}; "
                "free space, or choose another output folder"
            )
        with storage_errors(path), path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, total)
            else:  # macOS
                file.write(bytes(total))

    def release(self) -> bool:
        """Gives the reserved space back; returns whether there was any."""
        with suppress(FileNotFoundError):
            (self.folder / _RESERVE).unlink()
            return True
        return False

    def save(self, state: State, keep: Collection[int] = ()) -> Path:
        """Writes a state and then removes those that the policy does not keep; returns its folder.

        A process killed at any moment leaves the complete state or none. If the disk is full, the reserved space is
        used; then this state is complete, and the caller should end the run.

        Args:
            keep: further steps whose states are kept, such as the best.

        Raises:
            StorageError: the state cannot be written; earlier states are unchanged.
        """
        make_folder(self.folder)
        with storage_errors(self.folder):
            self._write(state)
        self._prune({state.step, *keep})
        return self.path(state.step)

    def _write(self, state: State) -> None:
        self._remove_unfinished()
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.folder))
        try:
            write_state(state, staging)
            target = self.path(state.step)
            if target.exists():  # an invalid state that resuming skipped, or the same state
                self._remove(target)
            staging.replace(target)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def _prune(self, keep: Collection[int]) -> None:
        steps = self.steps()
        kept = {*keep, *steps[-self._keep_last :]}
        kept |= {step for step in steps if self._keep_steps and step % self._keep_steps == 0}
        for step in steps:
            if step not in kept:
                self._remove(self.path(step))

    def _remove(self, path: Path) -> None:
        """Removes a state; its name disappears first, so that no reader sees a part of it."""
        hidden = path.with_name(f"{_STAGING}removed-{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path.replace(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _remove_unfinished(self) -> None:
        for path in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(path, ignore_errors=True)

    def load(self, step: int) -> State:
        """Returns the verified state after a step; raises PunaError if it is damaged."""
        return read_state(self.path(step))

    def load_latest(self) -> tuple[State | None, list[str]]:
        """Returns the latest complete state (None if there is none), and a note for each damaged one that is newer."""
        notes: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), notes
            except PunaError as exc:  # noqa: PERF203
                notes.append(f"the state after step {step} is damaged, so an earlier one is used: {exc}")
        return None, notes
