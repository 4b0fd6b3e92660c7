"""A conversion that is interrupted, killed or runs out of disk leaves no incomplete model; repeating it resumes it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from puna import convert
from puna.checkpoint import open_checkpoint
from puna.config import GenerationConfig
from puna.convert import convert_tokenizer
from puna.convert import run as conversion_run
from puna.errors import CheckpointError, StorageError
from puna.files import resumable
from puna.files.resumable import publish, resumable_staging, staging_folders
from tests.helpers.meta_models import FAMILIES, hf_tensors, write_meta
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.vocabularies import train_sentencepiece

COMMAND = (sys.executable, "-m", "puna", "convert")


def write_model(folder: Path) -> Path:
    config = tiny_config()
    return write_folder(folder, config, tiny_tensors(config))


def write_model_with_tokenizer(folder: Path) -> Path:
    config = tiny_config(vocab_size=420)
    write_folder(folder, config, tiny_tensors(config))
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    GenerationConfig(eos_token_id=2).save_pretrained(folder)
    return folder


class StoppedError(Exception):
    """Stops a conversion in these tests."""


def stop_after(count: int) -> Callable[[int], None]:
    """Returns a progress callback that raises after `count` calls."""
    calls = iter(range(count))

    def progress(written: int) -> None:
        if next(calls, None) is None:
            raise StoppedError

    return progress


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of all files in a folder and its subfolders, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only_staging_folder(destination: Path) -> Path:
    """Returns the staging folder of a destination, which must have exactly one."""
    (staging,) = staging_folders(destination)
    return staging


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    convert(model, tmp_path / "uninterrupted", to="hf", shards=4)
    with pytest.raises(StoppedError):
        convert(model, destination, to="hf", shards=4, progress=stop_after(12))
    assert not destination.exists()
    staging = only_staging_folder(destination)
    assert staging.stat().st_mode & 0o777 == 0o700 and staging.name not in (".out.puna-partial", ".out.puna-")
    completed = sorted(path.name for path in (staging / "new").iterdir() if path.suffix == ".safetensors")
    assert 0 < len(completed) < 4
    plans = []
    convert(model, destination, to="hf", shards=4, on_plan=plans.append)
    assert 0 < plans[0].finished < plans[0].bytes
    assert contents(destination) == contents(tmp_path / "uninterrupted") and not staging.exists()


def test_a_conversion_with_other_options_starts_from_scratch(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(StoppedError):
        convert(model, destination, to="hf", shards=4, progress=stop_after(12))
    only_staging_folder(destination)
    plans = []
    convert(model, destination, to="hf", shards=4, dtype="float16", on_plan=plans.append)
    assert plans[0].finished == 0
    assert {weight.format.name for weight in open_checkpoint(destination).tensors.values()} == {"f16"}


def test_a_conversion_of_a_changed_source_starts_from_scratch(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(StoppedError):
        convert(model, destination, to="hf", shards=4, progress=stop_after(12))
    config = tiny_config()
    write_folder(model, config, tiny_tensors(config, seed=1))
    plans = []
    convert(model, destination, to="hf", shards=4, on_plan=plans.append, verify=True)
    assert plans[0].finished == 0


def stop_before_publishing(model: Path, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops a conversion to GGUF after the last byte is written, before the file is renamed."""

    def stop(*arguments: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(conversion_run, "publish", stop)
        with pytest.raises(StoppedError):
            convert(model, destination, to="gguf", threads=1)
    assert not destination.exists() and (only_staging_folder(destination) / "new" / destination.name).exists()


@pytest.mark.parametrize("edited_file", ["tokenizer.model", "tokenizer_config.json", "generation_config.json", ""])
def test_a_gguf_file_is_resumed_if_every_source_file_is_unchanged(
    edited_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, destination = write_model_with_tokenizer(tmp_path / "in"), tmp_path / "out"
    stop_before_publishing(model, destination, monkeypatch)
    if edited_file == "tokenizer.model":
        (model / edited_file).write_bytes((model / edited_file).read_bytes())  # changes only the modification time
    elif edited_file == "tokenizer_config.json":
        (model / edited_file).write_text('{"chat_template": "{{ messages }}"}')
    elif edited_file == "generation_config.json":
        GenerationConfig(eos_token_id=[2, 5]).save_pretrained(model)
    plans = []
    convert(model, destination, to="gguf", threads=2, on_plan=plans.append)
    assert plans[0].finished == (0 if edited_file else plans[0].bytes)
    convert(model, tmp_path / "fresh", to="gguf")
    assert destination.read_bytes() == (tmp_path / "fresh").read_bytes()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_link_at_the_destination_is_replaced_only_with_overwrite(to: str, tmp_path: Path) -> None:
    """A dangling link, or one to an empty folder, is replaced only with overwrite; its target is never changed."""
    model = write_model_with_tokenizer(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        destination = tmp_path / f"link to {name}"
        destination.symlink_to(tmp_path / name)
        with pytest.raises(StorageError, match="exists already"):
            convert(model, destination, to=to)
        assert destination.is_symlink() and not staging_folders(destination)
        convert(model, destination, to=to, overwrite=True)
        assert not destination.is_symlink() and open_checkpoint(destination).kind == to
    assert not (tmp_path / "nothing").exists() and not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("where", ["new", "old", "new/model"])
def test_a_source_in_a_staging_folder_is_refused_and_unchanged(where: str, tmp_path: Path) -> None:
    interrupted, destination = write_model(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(StoppedError):
        convert(interrupted, destination, to="hf", shards=4, progress=stop_after(12))
    folder = only_staging_folder(destination) / where
    shutil.rmtree(folder, ignore_errors=True)
    model = write_model(folder)
    before = contents(tmp_path)
    for options in ({"to": "hf"}, {"to": "hf", "overwrite": True}):
        with pytest.raises(StorageError, match="is in a staging folder of"):
            convert(model, destination, **options)
    assert contents(tmp_path) == before


def test_files_named_like_staging_folders_are_neither_used_nor_changed(tmp_path: Path) -> None:
    """puna uses a folder named like a staging folder only if it contains a lock and the record of this destination."""
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    for name in (".out.puna-partial", ".out.puna-old", ".out.puna-gone", ".out.puna-abcdefgh", ".out.tmp", ".out.bak"):
        (tmp_path / name / "new").mkdir(parents=True)
        (tmp_path / name / "new" / "model.safetensors").write_text("mine")
    (tmp_path / ".out.puna-file").write_text("mine")
    (tmp_path / ".out.puna-other").mkdir()
    (tmp_path / ".out.puna-other" / ".puna-conversion.json").write_text('{"destination": "another"}')
    (tmp_path / ".out.puna-link").symlink_to(tmp_path / ".out.puna-partial")
    before = contents(tmp_path)
    for overwrite in (False, True):
        convert(model, destination, to="hf", overwrite=overwrite)
        after = {name: data for name, data in contents(tmp_path).items() if not name.startswith("out/")}
        assert after == before


def test_a_staging_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(StoppedError):
        convert(model, destination, to="hf", shards=4, progress=stop_after(12))
    staging = only_staging_folder(destination)
    before = contents(staging)
    plans = []
    with monkeypatch.context() as patched:
        patched.setattr(resumable.os, "geteuid", lambda: staging.stat().st_uid + 1)
        with pytest.raises(StoppedError):
            convert(model, destination, to="hf", shards=4, on_plan=plans.append, progress=stop_after(12))
    assert plans[0].finished == 0 and contents(staging) == before


def publish_in_child(destination: Path, folder: bool, overwrite: bool, steps: int) -> bool:
    """Publishes new content in a child process, which ends at once before file operation number `steps`.

    Returns whether the child reached the end.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    remaining = steps

    def die(event: str, arguments: object) -> None:
        nonlocal remaining
        if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            remaining -= 1
            if remaining < 0:
                os._exit(1)

    with resumable_staging(destination, {"to": "new"}) as new:
        for name in ("a", "b") if folder else ("out",):
            (new / name).write_text("new")
        sys.addaudithook(die)
        publish(new, destination, None if folder else "out", overwrite)
    os._exit(0)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_killed_at_any_step_of_publishing_loses_no_model_and_leaves_no_files(
    folder: bool, overwrite: bool, tmp_path: Path
) -> None:
    new = {"a": b"new", "b": b"new"} if folder else {"out": b"new"}
    old = dict.fromkeys(new, b"old") if overwrite else {}

    def current(destination: Path) -> dict[str, bytes]:
        return contents(destination) if folder else contents(destination.parent)

    for steps in range(40):
        destination = tmp_path / f"{steps}" / "out"
        (destination if folder and overwrite else destination.parent).mkdir(parents=True)
        for name, data in old.items():
            (destination / name if folder else destination).write_bytes(data)
        is_complete = publish_in_child(destination, folder, overwrite, steps)
        resumable.recover(destination)
        files = {name: data for name, data in current(destination).items() if not name.startswith(".")}
        assert files in (old, new), steps
        if files == new:
            assert [path.name for path in destination.parent.iterdir()] == ["out"], steps
        with resumable_staging(destination, {"to": "new"}) as staging:
            for name in new:
                (staging / name).write_text("newer")
            publish(staging, destination, None if folder else "out", True)
        assert [path.name for path in destination.parent.iterdir()] == ["out"], steps
        if is_complete:
            break
    assert is_complete and steps > 3


def test_a_run_killed_during_replacement_does_not_lose_the_old_model(tmp_path: Path) -> None:
    """The run is killed after the old model is moved away; the next run restores it, or with overwrite replaces it."""
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    convert(model, destination, to="hf")
    old = contents(destination)
    for overwrite in (False, True):
        with pytest.raises(StoppedError), resumable_staging(destination, {"other": 1}) as new:
            (new / "file").touch()
            raise StoppedError
        destination.rename(only_staging_folder(destination) / "old")
        if overwrite:
            convert(model, destination, to="hf", dtype="float16", overwrite=True)
        else:
            with pytest.raises(StorageError, match="exists already"):
                convert(model, destination, to="hf", dtype="float16")
        assert (contents(destination) == old) is not overwrite
    assert not staging_folders(destination)


def test_an_incomplete_old_model_is_never_restored(tmp_path: Path) -> None:
    """The old model is renamed, then deleted; if the deletion is interrupted, the next run completes it."""
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    convert(model, destination, to="hf", shards=3)
    deleted = []

    def stop_after_one_file(path: Path, **options: object) -> None:
        deleted.append(path)
        (path / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
        raise StoppedError

    with pytest.MonkeyPatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(shutil, "rmtree", stop_after_one_file)
        convert(model, destination, to="hf", dtype="float16", overwrite=True)
    assert open_checkpoint(destination).config.dtype_name == "float16"
    assert deleted[0].name == "deleted"
    destination.rename(tmp_path / "final")
    convert(model, destination, to="hf")
    assert open_checkpoint(destination).config.dtype_name == "float32" and not deleted[0].exists()


def test_the_old_model_is_not_restored_while_another_process_replaces_it(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    convert(model, destination, to="hf")
    with resumable_staging(destination, {"other": 1}):
        # The other process moves the old model before it renames the new one to the destination.
        destination.rename(only_staging_folder(destination) / "old")
        with pytest.raises(StorageError, match="another process is writing it"):
            convert(model, destination, to="hf")
    assert not destination.exists()


def test_a_destination_with_the_longest_possible_name_is_written(tmp_path: Path) -> None:
    convert(write_model(tmp_path / "in"), tmp_path / ("x" * 255), to="hf")
    assert sorted(path.name[:3] for path in tmp_path.iterdir()) == ["in", "xxx"]


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_destination_created_during_the_conversion_is_not_replaced(to: str, tmp_path: Path) -> None:
    model, destination = write_model_with_tokenizer(tmp_path / "in"), tmp_path / "out"

    def create(plan: object) -> None:
        if to == "hf":
            destination.mkdir()
            (destination / "mine.txt").write_text("mine")
        else:
            destination.write_text("mine")

    with pytest.raises(StorageError, match="was created in the meantime"):
        convert(model, destination, to=to, on_plan=create)
    assert (destination / "mine.txt" if to == "hf" else destination).read_text() == "mine"
    plans = []
    convert(model, destination, to=to, overwrite=True, on_plan=plans.append)
    assert plans[0].finished == plans[0].bytes


def test_unusable_destinations_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model_with_tokenizer(tmp_path / "in")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for destination in (".", "..", "../b", tmp_path / "a"):
        with pytest.raises(StorageError, match="is the current folder, or contains it"):
            convert(model, destination, to="hf")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for destination in (tmp_path / "loop", tmp_path / "loop" / "x"):
        with pytest.raises(StorageError, match="loop"):
            convert(model, destination, to="hf")
    with pytest.raises(StorageError, match="File name too long"):
        convert(model, "x" * 256, to="hf")
    assert not any(Path.cwd().iterdir())


def test_an_interrupted_tokenizer_conversion_starts_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, destination = write_model_with_tokenizer(tmp_path / "in"), tmp_path / "out"
    (model / "chat_template.jinja").write_text("{{ messages }}")

    def stop(*arguments: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(conversion_run, "publish", stop)
        with pytest.raises(StoppedError):
            convert_tokenizer(model, destination)
    (model / "chat_template.jinja").unlink()
    convert_tokenizer(model, destination)
    convert_tokenizer(model, tmp_path / "fresh")
    assert contents(destination) == contents(tmp_path / "fresh")


def test_failure_to_write_the_conversion_record_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resumable, "write_json", refuse)
    with pytest.raises(StorageError, match="No space left"):
        convert(write_model(tmp_path / "in"), tmp_path / "out", to="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_the_error_for_an_unreadable_source_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised before anything is written. It is simulated, because root can read any file."""
    model = write_model_with_tokenizer(tmp_path / "in")
    original_open = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "tokenizer.model" and path.parent == model and arguments == ("rb",):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be read \(Permission denied\)"):
        convert(model, tmp_path / "out", to="hf")
    assert not (tmp_path / "out").exists()


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="No locks available"):
        convert(write_model(tmp_path / "in"), tmp_path / "out", to="hf")


def test_a_run_that_completed_no_file_leaves_no_files(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "deep" / "er" / "out"

    with pytest.raises(StoppedError):
        convert(model, destination, to="hf", progress=stop_after(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_second_simultaneous_conversion_to_a_destination_is_refused(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    with resumable_staging(destination, {"other": 1}), pytest.raises(StorageError, match="another process is writing"):
        convert(model, destination, to="hf")


def test_an_existing_model_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    destination.mkdir()
    convert(model, destination, to="hf")  # an empty folder is replaced without overwrite
    before = contents(destination)
    with pytest.raises(StorageError, match="exists already"):
        convert(model, destination, to="hf", dtype="float16")
    assert contents(destination) == before
    (destination / "notes.txt").write_text("mine")
    convert(model, destination, to="hf", dtype="float16", overwrite=True)
    assert "notes.txt" not in contents(destination) and contents(destination) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    for path in (model, model / "model.safetensors"):
        with pytest.raises(StorageError, match=r"is, or contains, the model|exists already"):
            convert(model, path, to="hf", overwrite=True)
    with pytest.raises(StorageError, match="is a folder; a GGUF file needs a name"):
        convert(model, destination, to="gguf")
    with pytest.raises(StorageError, match=r"choose the layout gguf \(--to gguf\)"):
        convert(model, tmp_path / "x.gguf", to="hf")


def test_too_little_free_space_is_an_error_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**5))
    with pytest.raises(StorageError, match=r"needs \d\.\d MB more and the disk has 0\.1 MB free"):
        convert(model, destination, to="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("layout", ["hf", "meta", "gguf"])
def test_a_disk_that_fills_up_is_an_error(layout: str, tmp_path: Path) -> None:
    """A limit on file sizes makes a write fail in the middle of a file, like a full disk."""
    model, destination = write_model_with_tokenizer(tmp_path / "in"), tmp_path / "out"
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from puna.__main__ import main; sys.argv = ['puna', *sys.argv[1:]]; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, "convert", str(model), str(destination), "--to", layout],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "cannot be written (File too large)" in run.stderr, run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_verify_detects_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, destination = write_model(tmp_path / "in"), tmp_path / "out"
    verify = conversion_run.verify_tensors

    def damage_and_verify(path: Path, *arguments: object) -> int:
        file = path / "model.safetensors"
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)
        return verify(path, *arguments)

    monkeypatch.setattr(conversion_run, "verify_tensors", damage_and_verify)
    with pytest.raises(CheckpointError, match="has wrong values"):
        convert(model, destination, to="hf", verify=True)
    assert not destination.exists()
    monkeypatch.undo()
    outcome = convert(model, destination, to="hf")
    assert outcome.conversion.plan.finished == 0  # a file that failed verification is not reused
    convert(model, tmp_path / "fresh", to="hf")
    assert contents(destination) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("where", ["a/b/model", "a/b", "a", "a/b/model/tokenizer.model", "a/link"])
@pytest.mark.parametrize("tokenizer_only", [False, True])
def test_a_destination_that_would_replace_the_source_is_refused(
    where: str, tokenizer_only: bool, tmp_path: Path
) -> None:
    """The destination must not be the model, a folder that contains it, one of its files, or a link to it."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    model = write_model(tmp_path / "a" / "b" / "model")
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
def test_a_run_killed_at_a_random_moment_can_be_repeated(tmp_path: Path) -> None:
    """After `kill -9` the destination is absent or complete, and repeating the command completes the conversion."""
    family = FAMILIES[11]  # Llama 3 70B's shape: eight shards, 33 MB
    model = write_meta(tmp_path / "meta", family, hf_tensors(family, layers=12))
    arguments = [str(model), str(tmp_path / "out"), "--to", "hf", "--shards", "9"]
    subprocess.run(
        [*COMMAND, *arguments[:1], str(tmp_path / "uninterrupted"), *arguments[2:]], check=True, capture_output=True
    )
    expected = contents(tmp_path / "uninterrupted")
    total = sum(map(len, expected.values()))
    rng = random.Random(5)
    outcomes = []
    for turn in range(10):
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = staged_bytes(tmp_path / "out")  # of earlier turns
        goal = begin + (rng.uniform(0, 1) if turn else 0.1) * (total - begin)
        while process.poll() is None and staged_bytes(tmp_path / "out") < goal:
            time.sleep(0.004)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        outcomes.append((tmp_path / "out").exists())
        if outcomes[-1]:
            assert contents(tmp_path / "out") == expected
            shutil.rmtree(tmp_path / "out")
    run = subprocess.run([*COMMAND, *arguments, "--json"], check=True, capture_output=True, text=True)
    assert contents(tmp_path / "out") == expected
    assert json.loads(run.stdout)["plan"]["files"]
    assert not all(outcomes) and not staging_folders(tmp_path / "out")


def staged_bytes(destination: Path) -> int:
    """Returns the bytes that a running conversion has written."""
    total = 0
    for folder in staging_folders(destination):
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # renamed or removed meanwhile
                total += path.stat().st_size
    return total


def test_ctrl_c_stops_a_conversion(tmp_path: Path) -> None:
    family = FAMILIES[11]
    model = write_meta(tmp_path / "meta", family, hf_tensors(family, layers=40))
    process = subprocess.Popen(
        [*COMMAND, str(model), str(tmp_path / "out"), "--to", "hf", "--dtype", "float32", "--verify"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not staging_folders(tmp_path / "out"):  # earlier, the command may not handle SIGINT yet
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
