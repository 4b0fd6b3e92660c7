"""A conversion that is interrupted, killed, or meets a full disk leaves no half model, and goes on when repeated."""

from __future__ import annotations

import errno
import fcntl
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from puna import convert
from puna.checkpoint import open_checkpoint
from puna.config import GenerationConfig
from puna.convert import convert_tokenizer
from puna.convert import run as conversion_run
from puna.errors import CheckpointError, StorageError
from puna.files import atomic_folder
from puna.files.atomic_folder import partial_folder, replaced_path, resumable_staging
from tests.checkpoint.tiny import tiny_config, tiny_tensors, write_folder
from tests.tokenizer.vocabularies import train_sentencepiece

from .families import FAMILIES, hf_tensors, write_meta

COMMAND = (sys.executable, "-m", "puna", "convert")


def source(folder: Path) -> Path:
    config = tiny_config()
    return write_folder(folder, config, tiny_tensors(config))


def with_tokenizer(folder: Path) -> Path:
    config = tiny_config(vocab_size=420)
    write_folder(folder, config, tiny_tensors(config))
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    GenerationConfig(eos_token_id=2).save_pretrained(folder)
    return folder


class StoppedError(Exception):
    """What stops a conversion in these tests."""


def stop_after(count: int) -> Callable[[int], None]:
    """Progress that raises at its `count`th call."""
    calls = iter(range(count))

    def progress(written: int) -> None:
        if next(calls, None) is None:
            raise StoppedError

    return progress


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_run_is_gone_on_with(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    convert(model, tmp_path / "whole", to="hf", shards=4)
    with pytest.raises(StoppedError):
        convert(model, goal, to="hf", shards=4, progress=stop_after(12))
    assert not goal.exists()
    held = sorted(path.name for path in partial_folder(goal).iterdir() if path.suffix == ".safetensors")
    assert 0 < len(held) < 4
    plans = []
    convert(model, goal, to="hf", shards=4, on_plan=plans.append)
    assert 0 < plans[0].finished < plans[0].bytes
    assert contents(goal) == contents(tmp_path / "whole") and not partial_folder(goal).exists()


def test_another_conversion_to_the_same_place_starts_anew(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(StoppedError):
        convert(model, goal, to="hf", shards=4, progress=stop_after(12))
    assert partial_folder(goal).exists()
    plans = []
    convert(model, goal, to="hf", shards=4, dtype="float16", on_plan=plans.append)
    assert plans[0].finished == 0
    assert {weight.format.name for weight in open_checkpoint(goal).tensors.values()} == {"f16"}


def test_a_changed_source_starts_anew(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(StoppedError):
        convert(model, goal, to="hf", shards=4, progress=stop_after(12))
    config = tiny_config()
    write_folder(model, config, tiny_tensors(config, seed=1))
    plans = []
    convert(model, goal, to="hf", shards=4, on_plan=plans.append, verify=True)
    assert plans[0].finished == 0


def stopped_when_whole(model: Path, goal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion to GGUF that ends between its last byte and the renaming."""

    def stop(*arguments: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(conversion_run, "publish", stop)
        with pytest.raises(StoppedError):
            convert(model, goal, to="gguf", threads=1)
    assert not goal.exists() and (partial_folder(goal) / goal.name).exists()


@pytest.mark.parametrize("changed", ["tokenizer.model", "tokenizer_config.json", "generation_config.json", ""])
def test_a_gguf_is_gone_on_with_if_every_file_is_the_same(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, goal = with_tokenizer(tmp_path / "in"), tmp_path / "out"
    stopped_when_whole(model, goal, monkeypatch)
    if changed == "tokenizer.model":
        (model / changed).write_bytes((model / changed).read_bytes())  # at another time: it may be another
    elif changed == "tokenizer_config.json":
        (model / changed).write_text('{"chat_template": "{{ messages }}"}')
    elif changed == "generation_config.json":
        GenerationConfig(eos_token_id=[2, 5]).save_pretrained(model)
    plans = []
    convert(model, goal, to="gguf", threads=2, on_plan=plans.append)
    assert plans[0].finished == (0 if changed else plans[0].bytes)
    convert(model, tmp_path / "fresh", to="gguf")
    assert goal.read_bytes() == (tmp_path / "fresh").read_bytes()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_links_at_the_goal(to: str, tmp_path: Path) -> None:
    """To nothing, to an empty folder: neither is replaced unasked, and what a link points to is never touched."""
    model = with_tokenizer(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        goal = tmp_path / f"link to {name}"
        goal.symlink_to(tmp_path / name)
        with pytest.raises(StorageError, match="exists already"):
            convert(model, goal, to=to)
        assert goal.is_symlink() and not partial_folder(goal).exists()
        convert(model, goal, to=to, overwrite=True)
        assert not goal.is_symlink() and open_checkpoint(goal).kind == to
    assert not (tmp_path / "nothing").exists() and not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("name", [".out.puna-old", ".out.puna-partial", ".out.puna-partial/model"])
def test_a_source_where_the_work_is_done_is_safe(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    model = source(tmp_path / name)
    before = contents(tmp_path)
    for options in ({"to": "hf"}, {"to": "hf", "overwrite": True}):
        with pytest.raises(StorageError, match="is in a working folder of"):
            convert(model, tmp_path / "out", **options)
    assert contents(tmp_path) == before


def test_other_files_where_the_work_is_done_are_safe(tmp_path: Path) -> None:
    model = source(tmp_path / "in")
    partial_folder(tmp_path / "out").mkdir()
    (partial_folder(tmp_path / "out") / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds other files"):
        convert(model, tmp_path / "out", to="hf")
    assert (partial_folder(tmp_path / "out") / "mine.txt").read_text() == "mine"


def test_killed_while_it_replaces(tmp_path: Path) -> None:
    """Between taking the old model away and putting the new one there: the old one comes back, or the new one."""
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    convert(model, goal, to="hf")
    old = contents(goal)
    goal.rename(replaced_path(goal))
    with pytest.raises(StorageError, match="exists already"):
        convert(model, goal, to="hf", dtype="float16")
    assert contents(goal) == old and not replaced_path(goal).exists()
    goal.rename(replaced_path(goal))
    convert(model, goal, to="hf", dtype="float16", overwrite=True)
    assert contents(goal) != old and not replaced_path(goal).exists()


def test_half_an_old_model_never_comes_back(tmp_path: Path) -> None:
    """Killed while it deletes what it replaced: that has another name by then, and goes with the next run."""
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    convert(model, goal, to="hf", shards=3)
    deleted = []

    def killed(path: Path, **options: object) -> None:
        if not deleted:
            deleted.append(path)
            (path / "model-00002-of-00003.safetensors").unlink()
            raise StoppedError

    with pytest.MonkeyPatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(shutil, "rmtree", killed)
        convert(model, goal, to="hf", dtype="float16", overwrite=True)
    assert open_checkpoint(goal).config.dtype == "float16" and len(deleted) == 1 and not replaced_path(goal).exists()
    goal.rename(tmp_path / "final")
    convert(model, goal, to="hf")
    assert open_checkpoint(goal).config.dtype == "float32" and not deleted[0].exists()


def test_what_was_there_does_not_come_back_under_a_running_process(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    convert(model, goal, to="hf")
    with resumable_staging(goal, {"other": 1}):
        goal.rename(replaced_path(goal))  # as the other process does, about to put the new one there
        with pytest.raises(StorageError, match="another process is writing it"):
            convert(model, goal, to="hf")
    assert not goal.exists()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_what_comes_into_being_meanwhile_is_not_replaced(to: str, tmp_path: Path) -> None:
    model, goal = with_tokenizer(tmp_path / "in"), tmp_path / "out"

    def meanwhile(plan: object) -> None:
        if to == "hf":
            goal.mkdir()
            (goal / "mine.txt").write_text("mine")
        else:
            goal.write_text("mine")

    with pytest.raises(StorageError, match="was created in the meantime"):
        convert(model, goal, to=to, on_plan=meanwhile)
    assert (goal / "mine.txt" if to == "hf" else goal).read_text() == "mine"
    plans = []
    convert(model, goal, to=to, overwrite=True, on_plan=plans.append)
    assert plans[0].finished == plans[0].bytes


def test_names_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_tokenizer(tmp_path / "in")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for goal in (".", "..", "../b", tmp_path / "a"):
        with pytest.raises(StorageError, match="is the current folder, or contains it"):
            convert(model, goal, to="hf")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for goal in (tmp_path / "loop", tmp_path / "loop" / "x"):
        with pytest.raises(StorageError, match="loop"):
            convert(model, goal, to="hf")
    for goal in (".lock", ".puna-conversion.json"):
        with pytest.raises(StorageError, match="puna uses this name for its records"):
            convert(model, goal, to="gguf")
    assert not any(Path.cwd().iterdir())


def test_a_tokenizer_is_resumed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, goal = with_tokenizer(tmp_path / "in"), tmp_path / "out"
    (model / "chat_template.jinja").write_text("{{ messages }}")

    def stop(*arguments: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(conversion_run, "publish", stop)
        with pytest.raises(StoppedError):
            convert_tokenizer(model, goal)
    (model / "chat_template.jinja").unlink()
    convert_tokenizer(model, goal)
    convert_tokenizer(model, tmp_path / "fresh")
    assert contents(goal) == contents(tmp_path / "fresh")


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_folder, "write_json", refuse)
    with pytest.raises(StorageError, match="No space left"):
        convert(source(tmp_path / "in"), tmp_path / "out", to="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_source_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said of the source, before anything is written; root may read everything, so the refusal is made up."""
    model = with_tokenizer(tmp_path / "in")
    opened = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "tokenizer.model" and path.parent == model and arguments == ("rb",):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read \(Permission denied\)"):
        convert(model, tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="No locks available"):
        convert(source(tmp_path / "in"), tmp_path / "out", to="hf")


def test_nothing_is_left_of_a_run_that_finished_no_file(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "deep" / "er" / "out"

    with pytest.raises(StoppedError):
        convert(model, goal, to="hf", progress=stop_after(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    with resumable_staging(goal, {"other": 1}), pytest.raises(StorageError, match="another process is writing it"):
        convert(model, goal, to="hf")


def test_what_is_there_already(tmp_path: Path) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    goal.mkdir()
    convert(model, goal, to="hf")  # an empty folder is as good as none
    before = contents(goal)
    with pytest.raises(StorageError, match="exists already"):
        convert(model, goal, to="hf", dtype="float16")
    assert contents(goal) == before
    (goal / "notes.txt").write_text("mine")
    convert(model, goal, to="hf", dtype="float16", overwrite=True)
    assert "notes.txt" not in contents(goal) and contents(goal) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    for bad in (model, model / "model.safetensors"):
        with pytest.raises(StorageError, match=r"is, or contains, the model|exists already"):
            convert(model, bad, to="hf", overwrite=True)
    with pytest.raises(StorageError, match="is a folder; a GGUF file needs a name"):
        convert(model, goal, to="gguf")
    with pytest.raises(StorageError, match="give --to gguf"):
        convert(model, tmp_path / "x.gguf", to="hf")


def test_a_disk_too_small_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(StorageError, match=r"needs 0\.07 GB more and the disk has 0\.00 GB free"):
        convert(model, goal, to="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("layout", ["hf", "meta", "gguf"])
def test_a_disk_that_fills_up(layout: str, tmp_path: Path) -> None:
    """A limit on a file's size fails a write in the middle, as a full disk does."""
    model, goal = with_tokenizer(tmp_path / "in"), tmp_path / "out"
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from puna.__main__ import main; sys.argv = ['puna', *sys.argv[1:]]; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "convert", str(model), str(goal), "--to", layout],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "cannot be written (File too large)" in run.stderr, run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_broken_write_is_found_by_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, goal = source(tmp_path / "in"), tmp_path / "out"
    verify = conversion_run.verify_tensors

    def spoil(path: Path, *rest: object) -> int:
        file = path / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        return verify(path, *rest)

    monkeypatch.setattr(conversion_run, "verify_tensors", spoil)
    with pytest.raises(CheckpointError, match="is not as intended"):
        convert(model, goal, to="hf", verify=True)
    assert not goal.exists()
    monkeypatch.undo()
    assert convert(model, goal, to="hf").conversion.plan.finished == 0  # what was found bad is not gone on with
    convert(model, tmp_path / "fresh", to="hf")
    assert contents(goal) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("where", ["a/b/model", "a/b", "a", "a/b/model/tokenizer.model", "a/link"])
@pytest.mark.parametrize("tokenizer_only", [False, True])
def test_no_goal_replaces_the_source(where: str, tokenizer_only: bool, tmp_path: Path) -> None:
    """Not the model, no folder around it, no file in it, and none of them by another name."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    model = source(tmp_path / "a" / "b" / "model")
    (model / "tokenizer.model").write_bytes(train_sentencepiece())
    (tmp_path / "a" / "link").symlink_to(model)
    before = contents(tmp_path)
    with pytest.raises(StorageError, match="is, or contains, the model to be converted"):
        if tokenizer_only:
            convert_tokenizer(model, tmp_path / where, overwrite=True)
        else:
            convert(model, tmp_path / where, to="hf", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_killed_at_ten_moments(tmp_path: Path) -> None:
    """`kill -9` at random: there is no model, or a whole one; repeating the command makes it whole."""
    family = FAMILIES[11]  # Llama 3 70B's shape: eight shards, 33 MB
    model = write_meta(tmp_path / "meta", family, hf_tensors(family, layers=12))
    arguments = [str(model), str(tmp_path / "out"), "--to", "hf", "--shards", "9"]
    started = time.perf_counter()
    subprocess.run([*COMMAND, *arguments[:1], str(tmp_path / "whole"), *arguments[2:]], check=True, capture_output=True)
    usual = time.perf_counter() - started
    whole = contents(tmp_path / "whole")
    rng = random.Random(5)
    seen = set()
    for _ in range(10):
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(usual * rng.uniform(0.3, 1.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "out").exists():
            found = contents(tmp_path / "out")
            found.pop(".puna-conversion.json", None)  # killed between the last renaming and tidying up
            found.pop(".lock", None)
            assert found == whole
            shutil.rmtree(tmp_path / "out")
            seen.add("whole")
        else:
            seen.add("none")
    run = subprocess.run([*COMMAND, *arguments, "--json"], check=True, capture_output=True, text=True)
    assert contents(tmp_path / "out") == whole
    assert json.loads(run.stdout)["plan"]["files"]
    assert "none" in seen and not partial_folder(tmp_path / "out").exists()


def test_ctrl_c(tmp_path: Path) -> None:
    family = FAMILIES[11]
    model = write_meta(tmp_path / "meta", family, hf_tensors(family, layers=40))
    process = subprocess.Popen(
        [*COMMAND, str(model), str(tmp_path / "out"), "--to", "hf", "--dtype", "float32", "--verify"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
