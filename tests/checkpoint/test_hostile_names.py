"""Folders that cannot be read, names that no file can have, and numbers that no model has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

import puna
from puna import load_tokenizer
from puna.checkpoint import open_checkpoint
from puna.checkpoint.inspect import inspect_checkpoint
from puna.cli import app
from puna.errors import CheckpointError, PunaError, StorageError, printable
from tests.golden.files import LAYOUTS


def as_nobody(call: Callable[[], object]) -> str:
    """Runs `call` without root's permissions; returns "none" (no error), "puna" (a PunaError) or the error's text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            call()
            result = "none"
        except PunaError:
            result = "puna"
        except BaseException as exc:
            result = f"{type(exc).__name__}: {exc}"
        os.write(write, result.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


CALLS: dict[str, Callable[[Path], object]] = {
    "LLM": puna.LLM,
    "open_checkpoint": open_checkpoint,
    "inspect": inspect_checkpoint,
    "load_tokenizer": load_tokenizer,
    "LlamaTokenizerFast": lambda path: puna.LlamaTokenizerFast.from_pretrained(path),
    "LlamaTokenizer": lambda path: puna.LlamaTokenizer.from_pretrained(path),
    "LlamaConfig": lambda path: puna.LlamaConfig.from_pretrained(path),
    "GenerationConfig": lambda path: puna.GenerationConfig.from_pretrained(path),
    "convert": lambda path: puna.convert(path, "/tmp/never-written", to="hf"),
}


def make_reachable(path: Path) -> None:
    """Lets other users enter a temporary folder of pytest, which only its owner may enter."""
    for parent in (path, *path.parents):
        if parent.name.startswith(("pytest-", "popen-")):  # pytest-xdist adds a folder for each process
            parent.chmod(0o755)
    path.chmod(0o755)


@pytest.mark.parametrize("name", CALLS)
def test_the_error_names_a_folder_that_cannot_be_read(tmp_path, name):
    make_reachable(tmp_path)
    parent = tmp_path / "parent"
    folder = parent / "model"
    folder.mkdir(parents=True)
    try:
        for mode, blocked in ((0o300, folder), (0, folder), (0, parent)):
            blocked.chmod(mode)
            if name in ("open_checkpoint", "inspect") or (mode == 0 and blocked == folder):
                message = f"{blocked}: cannot be read (Permission denied)"
                assert as_nobody(partial(_expect_message, name, folder, message)) == "none"
            blocked.chmod(0o755)
    finally:
        parent.chmod(0o755)
        folder.chmod(0o755)


def _expect_message(name: str, folder: Path, message: str) -> None:
    try:
        report = CALLS[name](folder)
    except PunaError as exc:
        errors = [str(exc)]
    else:
        errors = report.errors  # type: ignore[attr-defined]
    assert any(error.startswith(message) for error in errors), errors


@pytest.mark.parametrize("name", CALLS)
def test_unreadable_folders_and_files_raise_puna_errors(tmp_path, name):
    make_reachable(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (LAYOUTS["hf"]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    folder.chmod(0)
    try:
        expected = "none" if name == "inspect" else "puna"  # inspect reports errors instead of raising them
        assert as_nobody(lambda: CALLS[name](folder)) == expected
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0)
        assert as_nobody(lambda: CALLS[name](folder)) == expected
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "path", ["a\0b", "\ud800", "x" * 300, "a/" * 3000, "", "~\x1b[2J", "/dev/null", "/proc/self/mem"]
)
def test_names_that_no_model_has_raise_puna_errors(name, path):
    with pytest.raises(PunaError):
        CALLS[name](path)
        assert name == "inspect"
        raise PunaError("the error is in the report")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "a\0b/c", "\ud800/c", "x" * 300 + "/c"])
@pytest.mark.parametrize("layout", ["gguf", "hf", "meta"])
def test_names_that_cannot_be_written_raise_storage_errors(tmp_path, monkeypatch, name, layout):
    monkeypatch.chdir(tmp_path)
    target = name + ".gguf" if layout == "gguf" else name
    with pytest.raises(StorageError):
        puna.convert(LAYOUTS["hf"], target, to=layout)
    with pytest.raises(StorageError):
        load_tokenizer(LAYOUTS["hf"]).save_pretrained(name)
    with pytest.raises(StorageError):
        puna.LlamaConfig().save_pretrained(name)


@pytest.mark.parametrize("field", ["norm_eps", "rope_theta", "ffn_dim_multiplier"])
@pytest.mark.parametrize(
    "value", ["1e400", "1e308", "1e31", "-1", "0", "NaN", "Infinity", "1" + "0" * 400, '"1"', "[1]"]
)
def test_impossible_numbers_in_params_json_are_refused(tmp_path, field, value):
    params = json.loads((LAYOUTS["meta"] / "params.json").read_text())
    for file in (LAYOUTS["meta"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    params[field] = "VALUE"
    (tmp_path / "params.json").write_text(json.dumps(params).replace('"VALUE"', value))
    with pytest.raises(CheckpointError, match=f"{field} must be a positive number"):
        open_checkpoint(tmp_path)


def test_two_billion_layers_are_refused_at_once(tmp_path):
    params = json.loads((LAYOUTS["meta"] / "params.json").read_text())
    for file in (LAYOUTS["meta"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "params.json").write_text(json.dumps(params | {"n_layers": 2**31 - 1}))
    with pytest.raises(CheckpointError, match="n_layers is 2147483647; the limit is 10000"):
        open_checkpoint(tmp_path)


def test_control_characters_in_names_are_escaped(tmp_path):
    assert printable("é🦙 a\n\x1b[2J\x9b\u202e\t\ud800") == "é🦙 a\n\\x1b[2J\\x9b\\u202e\\t\\ud800"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "\x1b]0;title\x07llama"}))
    run = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert run.exit_code == 1
    assert "\x1b" not in run.output and "\x07" not in run.output
    run = CliRunner().invoke(app, ["inspect", str(tmp_path / "a\x1b[2Jb")])
    assert run.exit_code == 1
    assert "\x1b" not in run.output
