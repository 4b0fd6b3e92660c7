"""Files are written atomically, and errors name the file."""

from __future__ import annotations

import errno
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from puna import LlamaConfig
from puna.errors import ConfigError, ModelNotFoundError, PunaError, StorageError
from puna.files import JSON_LIMIT, atomic_write, make_folder, read_file, read_json, write_json


@pytest.mark.parametrize("step", ["fsync", "mkstemp", "replace"])
def test_a_failed_write_leaves_the_previous_file(tmp_path, monkeypatch, step):
    path = tmp_path / "config.json"
    write_json(path, {"old": True})

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        {"fsync": "os.fsync", "mkstemp": "tempfile.mkstemp", "replace": "pathlib.Path.replace"}[step], fail
    )
    with pytest.raises(StorageError, match=r"config\.json cannot be written \(No space left on device\)"):
        LlamaConfig().save_pretrained(tmp_path)
    monkeypatch.undo()
    assert read_json(path, ConfigError) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_an_error_of_the_writer_is_raised_unchanged(tmp_path):
    with pytest.raises(KeyError), atomic_write(tmp_path / "x") as file:
        file.write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "atomic", {})
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


def test_the_error_for_a_folder_that_cannot_be_created_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="cannot be written"):
            make_folder(path)
    with pytest.raises(StorageError, match="empty"):
        make_folder("")
    assert issubclass(StorageError, PunaError)
    assert issubclass(StorageError, OSError)


def test_models_raise_the_same_error_for_folders_that_cannot_be_created(tmp_path):
    torch = pytest.importorskip("torch")
    from puna import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file cannot be written"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(StorageError, match="empty"):
        model.save_pretrained("")


PEAK = "peak = lambda: 1024 * int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
"""A function that returns this process's peak memory in bytes; `ru_maxrss` includes that of the parent process."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the peak memory of a process")
@pytest.mark.parametrize("item", ["[]", "{}", '{"":0}', "[[]]", "1", '""', "0.5", '"\U0001f999"'])
def test_a_json_file_with_too_many_values_is_refused_with_little_memory(tmp_path, item):
    path = tmp_path / "config.json"
    path.write_text(
        '{"a":[' + (item + ",") * ((JSON_LIMIT - 10) // len(item.encode() + b",")) + "0]}", encoding="utf-8"
    )
    code = (
        "from pathlib import Path; from puna.errors import ConfigError; from puna.files import read_json\n"
        f"{PEAK}; before = peak()\n"
        f"try: read_json(Path({str(path)!r}), ConfigError)\n"
        "except ConfigError as exc: print('JSON values; the limit is 500000' in str(exc))\n"
        "print(peak() - before < 100e6)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert run.stdout == "True\nTrue\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the peak memory of a process")
def test_a_json_file_near_the_limits_needs_little_memory(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a":[' + "[]," * 240_000 + '"' + "\U0001f999" + "x" * 14_000_000 + '"]}', encoding="utf-8")
    code = (
        "from pathlib import Path; from puna.errors import ConfigError; from puna.files import read_json\n"
        f"{PEAK}; before = peak()\n"
        f"read_json(Path({str(path)!r}), ConfigError)\n"
        "print(peak() - before < 300e6)\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"


def test_errors_for_unreadable_files_state_the_reason(tmp_path, monkeypatch):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_file(tmp_path / "x", ConfigError, 10)
    (tmp_path / "x").write_bytes(b"12345678901")
    with pytest.raises(ConfigError, match="more than 10 bytes"):
        read_file(tmp_path / "x", ConfigError, 10)
    assert read_file(tmp_path / "x", ConfigError, 11) == b"12345678901"

    def denied(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))

    for method in ("open", "is_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pathlib.Path.{method}", denied)
            with pytest.raises(ConfigError, match=r"x: cannot be read \(Permission denied\); check"):
                read_json(tmp_path / "x", ConfigError)


def test_a_json_file_that_does_not_fit_in_memory_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": "' + "\U0001f999" + "x" * 15_000_000 + '"}', encoding="utf-8")
    code = (
        "import resource; from pathlib import Path; from puna.errors import ConfigError\n"
        "from puna.files import read_json\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, -1))\n"
        f"try: read_json(Path({str(path)!r}), ConfigError)\n"
        "except ConfigError as exc: print('more memory than is free' in str(exc))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"
