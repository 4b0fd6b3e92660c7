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
from puna.training.messages import how_to_resume
from puna.training.settings import TrainingSettings, read_settings

CHECKPOINTS, RECORD, SETTINGS = "checkpoints", "run.json", "training.toml"
_LOCK, _TOKENS = ".lock", "tokens"
_BEFORE_A_RUN = (_LOCK, _TOKENS)
"""Files that a run may leave if it fails before its first step."""

_OF_A_RUN = (
    "metrics.jsonl", "report.html", "adapter_*", "model*.safetensors", "model.safetensors.index.json", "config.json",
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*", "added_tokens.json",
    ".*.tmp", RECORD, SETTINGS,
)  # fmt: skip
"""Files of a run and of the results of all methods. The last two identify a run, so they are removed last."""


def choose_output(settings: TrainingSettings) -> Path:
    """Returns the folder of the result, created and empty, or with the run to resume.

    Raises:
        StorageError: the folder has other files, or an earlier result without `overwrite` or `resume`.
        TrainingError: there is no run to resume.
    """
    folder = folder_path(settings.output) if settings.output is not None else _new_name(settings)
    has_run = (folder / RECORD).exists() or (folder / SETTINGS).exists()  # killed between the writes of both
    if settings.resume and not has_run:
        raise TrainingError(
            f"{folder} has no {RECORD}, so that there is no run to resume; give the output folder of a run"
        )
    if has_run and not settings.resume and not settings.overwrite:
        raise StorageError(
            f"{folder} has an earlier run; {how_to_resume(folder)}, replace it with overwrite=True, or choose another "
            "output folder"
        )
    is_incomplete = settings.overwrite and has_run and not (folder / RECORD).exists()
    if is_incomplete and any(_is_foreign(path) and path.name != SETTINGS for path in folder.iterdir()):
        raise StorageError(
            f"{folder} has {SETTINGS} and other files, but no {RECORD}, so that they may not be those of a run; choose "
            "another output folder"
        )
    if has_run:
        _check_inputs_survive(settings, folder)
        return folder
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; choose another output folder")
    if folder.exists() and any(map(_is_foreign, folder.iterdir())):
        raise StorageError(f"{folder} has other files; choose an output folder that is empty or does not exist")
    return make_folder(folder)


def _check_inputs_survive(settings: TrainingSettings, folder: Path) -> None:
    """Raises StorageError if `overwrite` would remove the model, tokenizer or adapter that the run starts from."""
    for name in ("model", "tokenizer", "adapter") if settings.overwrite and not settings.resume else ():
        value = getattr(settings, name)
        if value and folder.resolve() in (Path(value).resolve(), *Path(value).resolve().parents):
            raise StorageError(
                f"{name} is {value}, which overwrite=True would remove from {folder}; choose another output folder"
            )


def _is_foreign(path: Path) -> bool:
    """Returns whether a run that ended before its first step cannot have left a file."""
    is_unfinished = path.name.startswith((f".{SETTINGS}.", f".{RECORD}.")) and path.suffix == ".tmp"
    return path.name not in _BEFORE_A_RUN and not is_unfinished


def remove_earlier_run(folder: Path) -> None:
    """Removes the states, the records and the result of an earlier run, whatever its method; other files stay."""
    for name in (CHECKPOINTS, "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for pattern in _OF_A_RUN:
        for path in folder.glob(pattern):
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)


def _new_name(settings: TrainingSettings) -> Path:
    model = name_from_path(Path(settings.model or "new"))
    base = Path("runs") / f"{model}-{settings.task}-{settings.method}"
    number = 1
    while (path := base.with_name(f"{base.name}-{number}") if number > 1 else base).exists():
        number += 1
    return path


def earlier_choices(settings: TrainingSettings, folder: Path) -> TrainingSettings:
    """Returns the settings of a resumed run with the choices that its limits made at first, in place of the limits."""
    if (settings.max_time is None and settings.max_memory is None) or not (folder / SETTINGS).exists():
        return settings
    earlier = TrainingSettings.of(read_settings(folder / SETTINGS))
    choices = {name: getattr(earlier, name) for name in ("steps", "micro_batch_tokens", "gradient_checkpointing")}
    return settings.changed(max_time=None, max_memory=None, **choices)


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
