"""The folder of a run: chosen, locked against other processes, and described by run.json."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from puna import __version__
from puna.errors import PunaError, StorageError, TrainingError
from puna.files import folder_path, make_folder, name_from_path, read_json, write_json
from puna.training.settings import TrainingSettings

CHECKPOINTS, RECORD, SETTINGS = "checkpoints", "run.json", "training.toml"
_LOCK, _TOKENS = ".lock", "tokens"
_BEFORE_A_RUN = (_LOCK, _TOKENS)
"""Files that a run may leave if it fails before its first step."""

_OF_A_RUN = (RECORD, SETTINGS, "metrics.jsonl", "report.html")


def choose_output(settings: TrainingSettings) -> Path:
    """Returns the folder of the result, created and empty, or with the run to resume.

    Raises:
        StorageError: the folder has other files, or an earlier result without `overwrite` or `resume`.
        TrainingError: there is no run to resume.
    """
    folder = folder_path(settings.output) if settings.output is not None else _new_name(settings)
    has_run = (folder / RECORD).exists()
    if settings.resume and not has_run:
        raise TrainingError(
            f"{folder} has no {RECORD}, so that there is no run to resume; give the output folder of a run"
        )
    if settings.resume:
        return folder
    if has_run and settings.overwrite:
        for name in (CHECKPOINTS, "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in _OF_A_RUN:
            with suppress(FileNotFoundError):
                (folder / name).unlink()
        return folder
    if has_run:
        raise StorageError(
            f"{folder} has an earlier run; continue it with resume=True, replace it with overwrite=True, or choose "
            "another output folder"
        )
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; choose another output folder")
    if folder.exists() and any(item.name not in _BEFORE_A_RUN for item in folder.iterdir()):
        raise StorageError(f"{folder} has other files; choose an output folder that is empty or does not exist")
    return make_folder(folder)


def _new_name(settings: TrainingSettings) -> Path:
    model = name_from_path(Path(settings.model or "new"))
    base = Path("runs") / f"{model}-{settings.task}-{settings.method}"
    number = 1
    while (path := base.with_name(f"{base.name}-{number}") if number > 1 else base).exists():
        number += 1
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager: no other process trains in this folder.

    Raises:
        TrainingError: another process does.
    """
    import fcntl  # not on Windows, which puna does not support

    make_folder(folder)
    with (folder / _LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise TrainingError(f"another process trains in {folder}; wait for it or choose another folder") from exc
        yield


def environment() -> dict[str, Any]:
    """Returns the versions and the machine that the numbers of a run depend on."""
    return {
        "puna": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


class RunRecord:
    """run.json: the description of a run, for lists of runs and for whoever repeats it.

    Args:
        folder: the run's folder.
        values: settings, data and sizes; the time of the start and the status are added.
    """

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self._path = folder / RECORD
        before: dict[str, Any] = {}
        with suppress(PunaError):  # a new run
            before = read_json(self._path, TrainingError)
        started = before.get("started", _now())
        self._values = {"status": "running", "started": started, "step": 0, "environment": environment(), **values}
        write_json(self._path, self._values)

    def update(self, **values: Any) -> None:
        """Replaces values."""
        self._values |= values
        write_json(self._path, self._values)

    def end(self, status: str, **values: Any) -> None:
        """Records the status "finished", "stopped", "interrupted" or "failed", and the time."""
        self.update(status=status, ended=_now(), **values)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
