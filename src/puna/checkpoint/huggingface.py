"""Finds the weight files of a Hugging Face folder and reads their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from puna.checkpoint.names import is_ignored
from puna.errors import CheckpointError
from puna.files import read_json
from puna.formats.blocks import StoredTensor
from puna.formats.mapped import sniff
from puna.formats.safetensors import open_safetensors
from puna.formats.torch_zip import open_torch_zip

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of a single weight file, in order of preference. For several files, NAME.index.json lists them instead."""


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder, and for several files their index and its map of tensors to files."""

    paths: tuple[Path, ...]
    index: Path | None = None
    weight_map: dict[str, str] | None = None


def find_weight_files(folder: Path) -> WeightFiles:
    """Returns the weight files of a folder. Prefers safetensors to torch files, and a single file to an index.

    If there are no such files, a single safetensors file may have any name.

    Raises:
        CheckpointError: there are no weights, or the index is damaged or names files that are not in the folder.
    """
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return WeightFiles((folder / name,))
        if (folder / f"{name}.index.json").exists():
            return _read_index(folder, folder / f"{name}.index.json")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:  # AutoGPTQ's file name contains the number of bits
        return WeightFiles((others[0],))
    names = ", ".join(f"{name}[.index.json]" for name in WEIGHT_FILES)
    raise CheckpointError(f"{folder}: no weights: the folder contains no {names} or .gguf file. Download it again")


def _read_index(folder: Path, index: Path) -> WeightFiles:
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(file) is str for file in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map names of tensors to names of files; download it again")
    paths = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index}: names the file {name[:200]!r}; puna reads only files inside the folder")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index}: names {name[:200]!r}, which is not in the folder; download it too")
        paths.append(folder / name)
    return WeightFiles(tuple(paths), index, weight_map)


def read_tensors(files: WeightFiles) -> dict[str, StoredTensor]:
    """Returns all tensors of the files, by their stored names.

    Raises:
        CheckpointError: a file is damaged, or its tensors differ from the index. Differences in ignored tensors are
            allowed, since some indexes and some shards lack them.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files.paths:
        shard = open_tensor_file(path)
        if files.weight_map is not None:
            _check_shard(files.weight_map, path, shard)
        tensors |= shard
    if files.weight_map is not None:
        missing = [name for name in files.weight_map if name not in tensors and not is_ignored(name)]
        if missing:
            file = files.weight_map[missing[0]]
            raise CheckpointError(
                f"{files.index}: tensor {missing[0]!r} is not in {file!r}; the files do not belong together"
            )
    return tensors


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors or torch file; the content, not the name, determines the format."""
    return open_safetensors(path).tensors if sniff(path) == "safetensors" else open_torch_zip(path).tensors


def _check_shard(weight_map: dict[str, str], path: Path, shard: dict[str, StoredTensor]) -> None:
    for name in shard:
        if weight_map.get(name) != path.name and not is_ignored(name):
            location = f"is in {weight_map[name]!r}" if name in weight_map else "does not exist"
            raise CheckpointError(
                f"{path}: contains tensor {name!r}, which {location} according to the index; the files do not belong "
                "together"
            )
