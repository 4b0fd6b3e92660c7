"""States of a run: complete or absent after any failure, verified, kept by policy, and resumed bit for bit."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.errors import PunaError, StorageError, TrainingError
from puna.training import output
from puna.training.api import train
from puna.training.checkpoints import CheckpointStore, State, check_same_run, is_disk_full
from puna.training.events import Observer
from puna.training.safety import TrainingInterrupted
from tests.training.tiny import MODEL, OPTIONS, assert_same_run

STEPS = 8
RUN = {**OPTIONS, "steps": STEPS, "save_steps": 2, "eval_share": 0.2, "eval_steps": 3, "schedule": "cosine"}


def state(step: int = 3) -> State:
    generator = torch.Generator().manual_seed(step)
    tensors = {"a.b": torch.randn(3, 5, generator=generator), "count": torch.tensor(7.0), "half": torch.ones(2).half()}
    return State(step, tensors, {"losses": [0.1, 1e-300, 1 / 3], "nested": {"a": [1, None, True]}})


def test_a_state_is_read_as_it_was_written(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.save(state())
    loaded = store.load(3)
    assert loaded.step == 3 and loaded.record == state().record
    assert list(loaded.tensors) == list(state().tensors)
    for name, tensor in state().tensors.items():
        assert torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].dtype == tensor.dtype
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = safetensors.load_file(path / "tensors.safetensors")
    assert np.array_equal(theirs["a.b"], state().tensors["a.b"].numpy())


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
def test_a_damaged_state_is_skipped_and_the_one_before_is_used(tmp_path, name, damage):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2)
    store.save(state(2))
    path = store.save(state(3)) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[:-3], "empty": b""}.get(damage, bytes(content)))
    if damage == "remove":
        path.unlink()
    with pytest.raises(PunaError, match=name.split(".")[0]):
        store.load(3)
    latest, notes = store.load_latest()
    assert latest is not None and latest.step == 2 and len(notes) == 1 and "step 3 is damaged" in notes[0]


def test_states_are_kept_by_policy(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, keep_steps=4)
    for step in range(1, 11):
        store.save(state(step), keep=[3])
    assert store.steps() == [3, 4, 8, 9, 10]
    assert not list(store.folder.glob(".*"))


def test_files_of_a_killed_save_are_ignored_and_removed(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(state(1))
    (store.folder / ".saving-abc").mkdir()
    (store.folder / ".saving-abc" / "tensors.safetensors").write_bytes(b"partial")
    (store.folder / "step-notanumber").mkdir()
    assert store.steps() == [1]
    store.save(state(2))
    assert not list(store.folder.glob(".saving-*"))


KILLED = """
    import os, random, signal, sys, time
    from tests.training import tiny
    from tests.training.test_checkpoints import MODEL, RUN
    from puna.training.api import train
    tiny.register()
    data, out, kills, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    generator = random.Random(seed)
    for kill in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(100)  # a child must not outlive the test
            report = lambda event: os.write(writer, b".") and None
            train(MODEL, data, output=out, resume=kill > 0, callbacks=[report], **RUN)
            os._exit(0)
        os.close(writer)  # reading ends if the child finishes first
        os.read(reader, 1)
        for _ in range(generator.randrange(4)):
            os.read(reader, 1)
        time.sleep(generator.random() * 0.02)  # any moment of a step, an evaluation or a save
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
    result = train(MODEL, data, output=out, resume=True, **RUN)
    print(result.losses)
"""


def run_killed(data: str, folder: Path, kills: int, seed: int) -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(KILLED), data, str(folder), str(kills), str(seed)],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bits(uninterrupted, data, tmp_path):
    run_killed(data, tmp_path / "killed", kills=2, seed=1)
    assert_same_run(train(MODEL, data, output=tmp_path / "killed", resume=True, **RUN), uninterrupted)


@pytest.mark.soak
def test_ten_killed_runs_are_resumed_to_the_same_bits(uninterrupted, data, tmp_path):
    for seed in range(10):
        run_killed(data, tmp_path / f"killed-{seed}", kills=10, seed=seed)
        assert_same_run(train(MODEL, data, output=tmp_path / f"killed-{seed}", resume=True, **RUN), uninterrupted)


PLACES = [
    "puna.training.checkpoints.store.tempfile.mkdtemp",
    "puna.training.checkpoints.state.write_shard",
    "puna.training.checkpoints.state.atomic_write",
    "puna.training.checkpoints.state.sync_folder",
]


class FullDisk:
    """Replaces a function that writes: from its n-th call on, the disk is full until the reserved space is released."""

    def __init__(self, original, reserve: Path, calls: int, forever: bool = False) -> None:
        self.original, self.reserve, self.calls, self.forever = original, reserve, calls, forever

    def __call__(self, *arguments, **options):
        self.calls -= 1
        if self.calls < 0 and (self.forever or self.reserve.exists()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.original(*arguments, **options)


def replaced(place: str):
    """Returns the function at a dotted place."""
    import importlib

    parts = place.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            value = getattr(value, name)
        return value
    raise AssertionError(place)


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_loses_nothing(uninterrupted, data, tmp_path, monkeypatch, place):
    folder = tmp_path / "full"
    full = FullDisk(replaced(place), folder / "checkpoints" / ".reserve", calls=1)
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(TrainingError, match=r"the disk is full; the state after step 4 is in .*Free space"):
            train(MODEL, data, output=folder, **RUN)
    assert CheckpointStore(folder / "checkpoints").steps() == [2, 4]
    assert_same_run(train(MODEL, data, output=folder, resume=True, **RUN), uninterrupted)


def test_a_disk_that_stays_full_leaves_the_earlier_state(uninterrupted, data, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    full = FullDisk(replaced(PLACES[1]), folder / "checkpoints" / ".reserve", calls=1, forever=True)
    with monkeypatch.context() as patch:
        patch.setattr(PLACES[1], full)
        with pytest.raises(StorageError, match="cannot be written"):
            train(MODEL, data, output=folder, **RUN)
    assert CheckpointStore(folder / "checkpoints").steps() == [2]
    assert_same_run(train(MODEL, data, output=folder, resume=True, **RUN), uninterrupted)


class Failing(Observer):
    """An observer whose file is on a full disk from a step on."""

    def stepped(self, event):
        if event.step == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_observer_that_fails_loses_nothing(uninterrupted, data, tmp_path):
    with pytest.raises(OSError, match="No space left"):
        train(MODEL, data, output=tmp_path / "full", callbacks=[Failing()], **RUN)
    assert CheckpointStore(tmp_path / "full" / "checkpoints").steps()[-1] == 5
    assert_same_run(train(MODEL, data, output=tmp_path / "full", resume=True, **RUN), uninterrupted)


def test_too_little_free_space_is_an_error_before_the_first_step(data, tmp_path, registered, monkeypatch):
    monkeypatch.setattr("puna.training.checkpoints.store.free_bytes", lambda path: 3_000_000)
    with pytest.raises(StorageError, match=r"3.0 MB are free, but the states of this run need .* MB; free space"):
        train(MODEL, data, output=tmp_path / "full", **RUN)


def test_full_disks_are_recognised_through_causes():
    try:
        try:
            raise OSError(errno.EDQUOT, "quota")
        except OSError as exc:
            raise StorageError("cannot be written") from exc
    except StorageError as exc:
        assert is_disk_full(exc)
    assert not is_disk_full(OSError(errno.EACCES, "no")) and not is_disk_full(None)


class Interrupting(Observer):
    """Sends a signal to this process after a step."""

    def __init__(self, number: int, step: int = 3, times: int = 1, save: bool | None = None) -> None:
        self.number, self.step, self.times, self.save = number, step, times, save

    def stepped(self, event):
        if event.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def interrupted(self, step):
        return self.save


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_ctrl_c_saves_the_state_of_the_last_step(uninterrupted, data, tmp_path, number, times):
    handlers = [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(TrainingInterrupted, match=r"after step 3 is saved in .*resume=True") as error:
        train(MODEL, data, output=tmp_path / "out", callbacks=[Interrupting(number, times=times)], **RUN)
    assert isinstance(error.value, KeyboardInterrupt) and error.value.step == 3
    assert '"interrupted"' in (tmp_path / "out" / "run.json").read_text()
    assert [signal.getsignal(item) for item in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_same_run(train(MODEL, data, output=tmp_path / "out", resume=True, **RUN), uninterrupted)


def test_the_state_is_not_saved_if_the_user_declines(data, tmp_path, registered):
    observer = Interrupting(signal.SIGINT, save=False)
    with pytest.raises(TrainingInterrupted, match="after step 3 is not saved"):
        train(MODEL, data, output=tmp_path / "out", callbacks=[observer], **RUN)
    assert CheckpointStore(tmp_path / "out" / "checkpoints").steps() == [2]


def test_another_run_is_not_resumed(data, tmp_path, registered):
    with pytest.raises(TrainingInterrupted):
        train(MODEL, data, output=tmp_path / "out", callbacks=[Interrupting(signal.SIGINT)], **RUN)
    with pytest.raises(
        TrainingError, match=r"learning_rate was 0.001 and is 0.002; seed was 0 and is 1|seed was"
    ) as error:
        train(MODEL, data, output=tmp_path / "out", resume=True, **{**RUN, "learning_rate": 0.002, "seed": 1})
    assert "learning_rate was 0.001 and is 0.002" in str(error.value)
    path = Path(data)
    text = path.read_text()
    path.write_text(text.replace("a", "b", 1))
    try:
        with pytest.raises(TrainingError, match="the data were other examples"):
            train(MODEL, data, output=tmp_path / "out", resume=True, **RUN)
    finally:
        path.write_text(text)
    assert len(train(MODEL, data, output=tmp_path / "out", resume=True, **{**RUN, "save_steps": 3}).losses) == STEPS


def test_differences_name_every_setting():
    record = {"settings": {"rank": 8, "seed": 1, "threads": 2}, "data": "abc"}
    check_same_run(record, {"rank": 8, "seed": 1, "threads": 4}, "abc")
    with pytest.raises(TrainingError, match=r"rank was 8 and is 4; seed was 1 and is 2; the data were other"):
        check_same_run(record, {"rank": 4, "seed": 2, "threads": 2}, "abd")


def test_a_finished_run_that_is_resumed_gives_the_same_result(uninterrupted, data, tmp_path):
    shutil.copytree(uninterrupted.path, tmp_path / "copy")
    again = train(MODEL, data, output=tmp_path / "copy", resume=True, **RUN)
    assert again.losses == uninterrupted.losses and again.metrics == uninterrupted.metrics


def test_the_output_folder_is_never_overwritten_silently(uninterrupted, data, tmp_path):
    with pytest.raises(
        StorageError, match=r"has an earlier run; continue the run with `puna train resume .*resume=True"
    ):
        train(MODEL, data, output=uninterrupted.path, **RUN)
    shutil.copytree(uninterrupted.path, tmp_path / "copy")
    replaced_run = train(MODEL, data, output=tmp_path / "copy", overwrite=True, **{**RUN, "steps": 2})
    assert len(replaced_run.losses) == 2
    assert CheckpointStore(replaced_run.path / "checkpoints").steps() == [2]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(StorageError, match="has other files"):
        train(MODEL, data, output=tmp_path / "photos", overwrite=True, **RUN)
    with pytest.raises(TrainingError, match="no run to resume"):
        train(MODEL, data, output=tmp_path / "nothing", resume=True, **RUN)


def test_two_processes_do_not_train_in_one_folder(data, tmp_path, registered):
    with output.locked(tmp_path / "out"), pytest.raises(TrainingError, match="another process trains"):
        train(MODEL, data, output=tmp_path / "out", **RUN)


def test_the_saved_toml_file_reruns_the_run(uninterrupted, tmp_path, monkeypatch):
    from puna.training.api import run_training
    from puna.training.settings import TrainingSettings, read_settings

    values = read_settings(uninterrupted.path / "training.toml")
    again = run_training(TrainingSettings.of({**values, "output": tmp_path / "again"}))
    assert_same_run(again, uninterrupted)
    monkeypatch.chdir(tmp_path)
    shorter = run_training(TrainingSettings.of({**values, "steps": 1, "save_steps": 0, "eval_steps": 0}))
    assert shorter.path == Path("runs/hf-text-full") and len(shorter.losses) == 1
    assert run_training(TrainingSettings.of({**values, "steps": 1})).path == Path("runs/hf-text-full-2")
