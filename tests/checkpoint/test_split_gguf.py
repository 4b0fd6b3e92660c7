"""A GGUF model that the package gguf split into parts is read like the single file, from the path of any part."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import puna
from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.errors import CheckpointError, ModelNotFoundError, StorageError, TokenizerError
from puna.formats.gguf import open_gguf
from puna.hub import Reference
from puna.hub.choice import Selection
from tests.golden.files import LAYOUTS
from tests.helpers.split_gguf import split, write

NUMBER, COUNT, TOTAL = "split.no", "split.count", "split.tensors.count"
PREFIX = "model-"


def write_part(path: Path, keys: dict[str, int], tensors: tuple[str, ...], architecture: str = "") -> None:
    """Writes one part with the given metadata keys and tensors; each tensor has eight numbers."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        (writer.add_int32 if key == TOTAL else writer.add_uint16)(key, value)
    for name in tensors:
        writer.add_tensor(name, np.arange(8, dtype=np.float32))
    write(writer)


@pytest.mark.parametrize("options", [{"split_max_tensors": 5}, {"split_max_tensors": 9, "small_first_shard": True}])
def test_a_split_model_is_read_like_the_single_file(options: dict[str, Any], tmp_path: Path) -> None:
    parts = split(tmp_path / "parts", **options)
    assert len(parts) >= 3 and parts[0].name == f"{PREFIX}00001-of-{len(parts):05}.gguf"
    single = open_checkpoint(LAYOUTS["gguf"])
    text = puna.LLM(LAYOUTS["gguf"]).generate("Once upon", max_tokens=12).text
    tokens = puna.load_tokenizer(LAYOUTS["gguf"]).encode("Once upon a time")
    for path in (parts[0], parts[1], parts[-1], parts[0].parent):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path == parts[0] and checkpoint.files == tuple(parts) and checkpoint.config == single.config
        assert checkpoint.tensors.keys() == single.tensors.keys()
        assert puna.LLM(path).generate("Once upon", max_tokens=12).text == text
        assert puna.load_tokenizer(path).encode("Once upon a time") == tokens
        report = inspect_checkpoint(path)
        assert not report.errors and report.container == f"GGUF v3, {len(parts)} parts"
        assert [file["name"] for file in report.files] == [part.name for part in parts]
    for name, weight in single.tensors.items():
        assert np.array_equal(checkpoint.tensors[name].data, weight.data), name


def test_a_split_model_is_converted(tmp_path: Path) -> None:
    parts = split(tmp_path / "parts", split_max_tensors=7)
    puna.convert(parts[1], tmp_path / "single.gguf", to="gguf")
    converted, source = open_gguf(tmp_path / "single.gguf"), open_gguf(parts[0])
    assert not any(key.startswith("split.") for key in converted.metadata)
    assert converted.metadata["general.name"] == "model", "the name includes no part number"
    assert converted.tensors.keys() == source.tensors.keys()
    for name, tensor in source.tensors.items():
        assert np.array_equal(converted.tensors[name].data, tensor.data), name
    assert converted.metadata["tokenizer.ggml.tokens"] == source.metadata["tokenizer.ggml.tokens"]
    with pytest.raises(StorageError, match="contains, the model to be converted"):
        puna.convert(parts[1], parts[2], to="gguf", overwrite=True)


def test_the_error_for_a_missing_part_names_it(tmp_path: Path) -> None:
    parts = split(tmp_path, split_max_tensors=5)
    parts[2].unlink()
    for path in (parts[0], parts[1], tmp_path):
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(parts[2]))}: no such file \(1 of \d parts missing"):
            open_checkpoint(path)
        with pytest.raises(CheckpointError, match=re.escape(parts[2].name)):
            puna.load_tokenizer(path)
        assert any(parts[2].name in error for error in inspect_checkpoint(path).errors)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(parts[0]))}: no such file \(2 of"):
        open_checkpoint(tmp_path)


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    parts = split(tmp_path, split_max_tensors=5)
    alone = tmp_path / "alone.gguf"
    shutil.copyfile(parts[0], alone)
    with pytest.raises(CheckpointError, match=r"alone\.gguf: the file is one part of a split model .*-00001-of-000"):
        open_checkpoint(alone)
    beyond = tmp_path / f"model-00099-of-{len(parts):05}.gguf"
    alone.rename(beyond)
    with pytest.raises(CheckpointError, match=r"model-00099-of-.*: the file is one part of a split model"):
        open_gguf(beyond)
    beyond.unlink()
    parts[1].rename(alone)
    parts[2].rename(parts[1])
    alone.rename(parts[2])
    message = re.escape(f"{parts[1]}: split.no is 2, but the file's name implies 1")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(parts[0])


FIRST = {NUMBER: 0, COUNT: 2, TOTAL: 3}
SECOND = FIRST | {NUMBER: 1}


@pytest.mark.parametrize(
    ("keys", "tensors", "architecture", "message"),
    [
        (SECOND | {COUNT: 3}, ("c",), "", "'split.count' is 3, but 2 in the first part"),
        (SECOND | {TOTAL: 4}, ("c",), "", "'split.tensors.count' is 4, but 3 in the first part"),
        ({COUNT: 2, TOTAL: 3}, ("c",), "", "split.no is missing"),
        (SECOND, ("a",), "", "tensor 'a' is in an earlier part"),
        (SECOND, ("c", "d"), "", "split.tensors.count is 3, but the 2 parts have 4 tensors"),
        (SECOND, ("c",), "qwen2", "'general.architecture' is qwen2, but llama in the first part"),
    ],
)
def test_a_part_of_another_model_is_refused(
    keys: dict[str, int], tensors: tuple[str, ...], architecture: str, message: str, tmp_path: Path
) -> None:
    first, second = (tmp_path / f"{PREFIX}0000{number}-of-00002.gguf" for number in (1, 2))
    write_part(first, FIRST, ("a", "b"), "llama")
    write_part(second, keys, tensors, architecture)
    with pytest.raises(CheckpointError, match=rf"0000[12]-of-00002\.gguf: .*{re.escape(message)}"):
        open_gguf(first)
    write_part(second, SECOND, ("c",))
    assert list(open_gguf(second).tensors) == ["a", "b", "c"]


def test_keys_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_array(COUNT, [2, 2])
    write(writer)
    with pytest.raises(CheckpointError, match=r"'split\.count' must be an integer"):
        open_gguf(tmp_path / "a.gguf")


def test_the_error_for_a_folder_with_several_models_lists_their_files(tmp_path: Path) -> None:
    split(tmp_path, split_max_tensors=10)
    shutil.copyfile(LAYOUTS["gguf"], tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(model-00001-of-0000\d\.gguf, other\.gguf\)"):
        open_checkpoint(tmp_path)
    with pytest.raises(TokenizerError, match="2 GGUF files"):
        puna.load_tokenizer(tmp_path)


def choose(names: list[str], part: str | None = None) -> list[str]:
    """Returns the files of a repository that are downloaded for the reference owner/name:part."""
    return Selection("model", (), "", Reference("owner/name", part=part)).choose(names)


def test_all_parts_are_chosen_from_a_repository() -> None:
    parts = [f"tiny-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert choose([*parts, "README.md"]) == parts
    assert choose([*parts, "tiny-Q4_0.gguf"], "q8") == choose([*parts, "tiny-Q4_0.gguf"], "00001") == parts
    assert choose([*parts, "Q4/tiny-Q4_0.gguf"], "q4_0") == ["Q4/tiny-Q4_0.gguf"]
    selection = Selection("model", (), "", Reference("owner/name"))
    assert selection.path(Path("cache"), parts) == Path("cache") / parts[0]
    with pytest.raises(ModelNotFoundError, match=r"2 GGUF files: tiny-Q4_0\.gguf, tiny-Q8_0-00001-of-00003\.gguf"):
        choose([*parts, "tiny-Q4_0.gguf"])
    with pytest.raises(ModelNotFoundError, match=r"such as owner/name:Q8_0"):
        choose([*parts, "tiny-Q9_0.gguf"])
