"""A save that replaces an earlier save, with an error or a killed process at every step."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.checkpoint import open_checkpoint
from puna.config import GenerationConfig
from puna.errors import CheckpointError, PunaError
from puna.saving import save_checkpoint
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors


class Killed(BaseException):
    """Simulates a killed process: no code of puna catches this exception."""


@dataclass
class Save:
    """A model to save; a call saves it in a folder."""

    seed: int
    size: int = 10**9
    head: str = "lm"
    changes: dict[str, Any] = field(default_factory=dict)

    def __call__(self, folder: Path) -> None:
        config = tiny_config(hidden_size=32, intermediate_size=32, head_dim=8, vocab_size=40, **self.changes)
        tensors = tiny_tensors(config, self.head, self.seed)
        entries = [(n, "f32", t.shape, t.reshape(-1).view(np.uint8)) for n, t in tensors.items()]
        generation = GenerationConfig(max_new_tokens=4 + len(self.changes)) if self.head == "lm" else None
        save_checkpoint(folder, config, entries, generation, self.size)


FIRST = Save(1)
OTHER_CONFIG = {"rms_norm_eps": 1e-3}  # with the same shapes, so that a mixture of both saves would load
CASES = {
    "file over file": (FIRST, Save(2)),
    "file over file of another configuration": (FIRST, Save(2, changes=OTHER_CONFIG)),
    "shards over file": (FIRST, Save(2, 9_000, changes=OTHER_CONFIG)),
    "file over shards": (Save(1, 9_000), Save(2, changes=OTHER_CONFIG)),
    "shards over as many shards": (Save(1, 9_000), Save(2, 9_000)),
    "shards over more shards": (Save(1, 6_000), Save(2, 9_000)),
    "a classifier over a language model": (FIRST, Save(2, head="classification")),
}


def content(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of all files in a folder, by name; {} if the folder does not exist."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} if folder.exists() else {}


def fail_calls(patch: pytest.MonkeyPatch, error: Callable[[], BaseException], first: int, last: int) -> list[int]:
    """Makes the calls `first` to `last` of functions that change the disk fail; returns the list of failed calls."""
    count, failed = itertools.count(), []

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            if first <= (at := next(count)) <= last:
                failed.append(at)
                raise error()
            return original(*args, **options)

        return step

    for owner, name in ((Path, "replace"), (Path, "open"), (os, "fsync"), (os, "mkdir")):
        patch.setattr(owner, name, failing(getattr(owner, name)))
    return failed


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("case", [*CASES, "no earlier save"])
@pytest.mark.slow
def test_an_error_at_any_step_leaves_the_earlier_save(tmp_path: Path, case: str) -> None:
    earlier, save = CASES.get(case, (None, FIRST))
    if earlier is not None:
        earlier(tmp_path / "old")
    save(tmp_path / "new")
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    for step in itertools.count():
        folder = tmp_path / f"{step}" / "model"
        if earlier is not None:
            shutil.copytree(tmp_path / "old", folder)
        with pytest.MonkeyPatch.context() as patch:
            failed = fail_calls(patch, disk_full, step, step)
            try:
                save(folder)
            except OSError as exc:
                error: OSError | None = exc
            else:
                error = None  # an error from creating a folder that exists is ignored
        assert content(folder) == (old if error else new) and not list(folder.glob(".*"))
        assert error is None or folder.parent.exists() == (earlier is not None)
        if not failed:
            break
    assert step > 10


@pytest.mark.parametrize("error", [disk_full, Killed])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_a_killed_save_never_leaves_a_mixture(tmp_path: Path, case: str, error: Callable[[], BaseException]) -> None:
    earlier, save = CASES[case]
    earlier(tmp_path / "old")
    save(tmp_path / "new")
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    refused = 0
    for step in itertools.count():
        folder = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "old", folder)
        with pytest.MonkeyPatch.context() as patch:
            fail_calls(patch, error, step, 10**9)
            try:
                save(folder)
            except (OSError, Killed):
                pass
            except CheckpointError as exc:
                (old_folder,) = folder.glob(".old-*")
                assert f"those of the earlier save are in {old_folder.name}, move them back" in str(exc)
            else:
                break
        found = content(folder)
        if found in (old, new):
            open_checkpoint(folder)
            continue
        refused += 1
        with pytest.raises(PunaError, match=r"config\.json"):
            open_checkpoint(folder)
        earlier_saves = [content(old_files) for old_files in folder.glob(".old-*")]
        assert all(raw in (found.get(name), *(files.get(name) for files in earlier_saves)) for name, raw in old.items())
    assert (refused == 0) == (case == "file over file")
    assert content(folder) == new


def test_a_file_size_limit_leaves_the_earlier_save(tmp_path: Path) -> None:
    FIRST(tmp_path)
    old, limits = content(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            Save(2, changes=OTHER_CONFIG)(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path) == old and len(list(tmp_path.iterdir())) == len(old)
