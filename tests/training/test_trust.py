"""Trust in the folder of a run: Ctrl-C and full disks at any moment, kills between two files, and other methods."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from puna.errors import ConfigError, PunaError, StorageError, TrainingError
from puna.training import api
from puna.training.api import TrainingResult, train
from puna.training.events import Observer
from puna.training.probe import Measurement
from puna.training.safety import TrainingInterrupted
from tests.training.tiny import MODEL, OPTIONS, PlainText, assert_same_run

STEPS = 6
RUN = {**OPTIONS, "method": "lora", "rank": 2, "steps": STEPS, "save_steps": 2, "eval_share": 0.2, "eval_steps": 3}


def status(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["status"])


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("lora", "full"), ("full", "prompt")])
def test_a_result_that_is_overwritten_leaves_no_files_of_its_method(data, tmp_path, registered, first, second):
    options = {**OPTIONS, "steps": 1}
    train(MODEL, data, output=tmp_path / "run", **{**options, "method": first})
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(MODEL, data, output=tmp_path / "run", overwrite=True, **{**options, "method": second})
    train(MODEL, data, output=tmp_path / "fresh", **{**options, "method": second})
    assert files(tmp_path / "run") == files(tmp_path / "fresh") | {"notes.txt"}


def test_an_earlier_result_stays_until_the_new_run_begins(uninterrupted, data, tmp_path):
    folder = tmp_path / "run"
    train(MODEL, data, output=folder, **{**RUN, "steps": 1, "eval_steps": 0})
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(PunaError):
        train(MODEL, data, output=folder, overwrite=True, **{**RUN, "targets": ["no_such_matrix"]})
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(StorageError, match=r"adapter is .* which overwrite=True would remove"):
        train(MODEL, data, output=folder, overwrite=True, adapter=str(folder), **RUN)


def test_overwriting_keeps_files_next_to_settings_that_no_run_has_written(data, tmp_path, registered):
    names = ["training.toml", "config.json", "model.safetensors"]
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match=r"training.toml and other files, but no run.json"):
        train(MODEL, data, output=tmp_path, overwrite=True, **RUN)
    assert sorted(path.name for path in tmp_path.iterdir() if path.read_text() == "mine") == sorted(names)


def test_a_run_that_was_killed_before_run_json_is_resumed(uninterrupted, data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(api, "RunRecord", kill)
        with pytest.raises(Killed):
            train(MODEL, data, output=tmp_path / "run", **RUN)
    assert files(tmp_path / "run") == {".lock", "training.toml"}
    with pytest.raises(StorageError, match=r"has an earlier run; continue the run with .*overwrite=True"):
        train(MODEL, data, output=tmp_path / "run", **RUN)
    assert_same_run(train(MODEL, data, output=tmp_path / "run", resume=True, **RUN), uninterrupted)


def test_a_run_that_was_killed_inside_a_write_of_training_toml_is_no_obstacle(uninterrupted, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".training.toml.x1y2.tmp").write_text("mod")
    assert len(train(MODEL, data, output=tmp_path / "run", **{**RUN, "steps": 1, "eval_steps": 0}).losses) == 1


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_while_the_result_is_saved(uninterrupted, data, tmp_path, monkeypatch, signals):
    """One is too late to lose anything; after a second one, the state of the last step can be resumed."""
    original = api.save_result

    def interrupted(*arguments) -> None:
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGINT)
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(api, "save_result", interrupted)
        if signals == 1:
            assert_same_run(train(MODEL, data, output=tmp_path / "run", **RUN), uninterrupted)
            return
        with pytest.raises(TrainingInterrupted, match=rf"after step {STEPS} is saved in .*`puna train resume"):
            train(MODEL, data, output=tmp_path / "run", **RUN)
    assert status(tmp_path / "run") == "interrupted"
    assert_same_run(train(MODEL, data, output=tmp_path / "run", resume=True, **RUN), uninterrupted)


@contextmanager
def unreported_destructors() -> Iterator[None]:
    """Python ignores an interrupt inside a destructor, and files that it leaves open; pytest would report both."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
        gc.collect()
    finally:
        sys.unraisablehook = before


@unreported_destructors()
def interrupted_run(data: str, folder: Path, seed: int) -> TrainingResult:
    """Trains, with one to three times Ctrl-C in succession, at random moments of the first three tries."""
    generator = random.Random(seed)
    reached = presses = 0

    class Clock(Observer):
        def started(self, event):
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-4, 0.15))

    def press(*_: object) -> None:
        nonlocal presses
        presses -= 1
        if presses > 0:
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-4, 5e-3))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, press)
    try:
        for attempt in range(3):
            presses = generator.randrange(1, 4)
            try:
                return train(MODEL, data, output=folder, resume=attempt > 0, callbacks=[Clock()], **RUN)
            except TrainingInterrupted as exc:
                assert status(folder) == "interrupted"
                assert exc.step >= reached and (exc.path is not None or exc.step == 0)  # nothing is lost
                reached = exc.step
            except KeyboardInterrupt:  # after the run, such as while the report was written
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    return train(MODEL, data, output=folder, resume=True, **RUN)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_at_random_moments_loses_nothing(uninterrupted, data, tmp_path, seed):
    assert_same_run(interrupted_run(data, tmp_path / "run", seed), uninterrupted)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 42))
def test_ctrl_c_at_many_random_moments_loses_nothing(uninterrupted, data, tmp_path, seed):
    assert_same_run(interrupted_run(data, tmp_path / "run", seed), uninterrupted)


class LimitedFiles(Observer):
    """From a step on, files of this process have at most `size` bytes."""

    def __init__(self, size: int, step: int) -> None:
        self.size, self.step = size, step

    def stepped(self, event):
        if event.step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def limited_run(data: str, folder: Path, size: int, step: int) -> None:
    """Trains until a file exceeds a size, if one does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        train(MODEL, data, output=folder, callbacks=[LimitedFiles(size, step)], **RUN)
    except (PunaError, OSError):
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


SIZES = [0, 100, 400, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 20_000, 30_000, 50_000, 100_000]
"""Bytes; they end the writing of each of the files: metrics.jsonl, TensorBoard's, the states, the adapter, run.json."""


ignores_a_missing_report = pytest.mark.filterwarnings("ignore:report.html was not written")


@pytest.mark.slow
@ignores_a_missing_report
@pytest.mark.parametrize("size", [1_000, 12_000])
def test_a_limit_of_file_sizes_loses_nothing(uninterrupted, data, tmp_path, size):
    limited_run(data, tmp_path / "run", size, 3)
    assert_same_run(train(MODEL, data, output=tmp_path / "run", resume=True, **RUN), uninterrupted)


@pytest.mark.soak
@ignores_a_missing_report
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1, 2, 5, STEPS])
def test_every_limit_of_file_sizes_loses_nothing(uninterrupted, data, tmp_path, size, step):
    limited_run(data, tmp_path / "run", size, step)
    assert_same_run(train(MODEL, data, output=tmp_path / "run", resume=True, **RUN), uninterrupted)


class Leak(Observer):
    """Changes a frozen tensor when the held-out data were evaluated."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    def evaluated(self, event):
        with torch.no_grad():
            self.tensors[0].view(-1)[0] += 1


def test_the_result_of_a_single_step_is_checked(data, tmp_path, registered):
    tensors: list[torch.Tensor] = []

    class Remembering(PlainText):
        def load_model(self, *arguments):
            model = super().load_model(*arguments)
            tensors.append(model.get_parameter("model.norm.weight"))
            return model

    registered["text"] = Remembering
    options = {**RUN, "steps": 1, "eval_steps": 0}
    with pytest.raises(TrainingError, match=r"1 frozen tensors changed.*model\.norm\.weight"):
        train(MODEL, data, output=tmp_path / "leak", callbacks=[Leak(tensors)], **options)
    plain = train(MODEL, data, output=tmp_path / "plain", **options)
    again = train(MODEL, data, output=tmp_path / "plain", resume=True, **options)
    assert again.losses == plain.losses and again.metrics == plain.metrics


def test_a_resumed_run_keeps_the_steps_that_its_time_limit_chose(data, tmp_path, registered, monkeypatch):
    class Stop(Observer):
        def stepped(self, event):
            os.kill(os.getpid(), signal.SIGINT)

    from puna.training import estimate

    options = {**RUN, "max_time": "1h", "max_memory": "8GB"}
    speeds = iter([1.0, 1e12])  # slow at first: the limit chooses one step or a few
    monkeypatch.setattr(estimate, "_measured", lambda *_: Measurement(next(speeds)))
    with pytest.raises(TrainingInterrupted) as error:
        train(MODEL, data, output=tmp_path / "run", callbacks=[Stop()], **options)
    assert error.value.step == 1
    result = train(MODEL, data, output=tmp_path / "run", resume=True, **options)
    assert len(result.losses) == 1 == result.settings.steps


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("sft", {"labels": ["a", "b"]}, "labels is .*task sft does not use it, only classify"),
        ("sft", {"class_weights": "balanced"}, "class_weights is .*only classify"),
        ("sft", {"depth": 2}, "depth is 2, .*only pretrain"),
        ("classify", {"prompt_loss_weight": 0.5}, "prompt_loss_weight is 0.5.*only sft"),
        ("pretrain", {"truncate": "start"}, "truncate is .*only sft and classify"),
    ],
)
def test_options_that_a_task_would_ignore_are_refused(tmp_path, task, values, message):
    with pytest.raises(ConfigError, match=message):
        train(MODEL, [{"text": "a"}], task, output=tmp_path / "run", **values)
    assert not (tmp_path / "run").exists()
