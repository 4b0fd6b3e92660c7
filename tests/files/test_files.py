"""Files are written atomically, and errors name the file."""

from __future__ import annotations

import errno
import stat

import pytest

from puna import LlamaConfig
from puna.errors import ConfigError, PunaError, StorageError
from puna.files import atomic_write, make_folder, read_json, write_json


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


def test_folders_that_cannot_be_created_are_named(tmp_path):
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
