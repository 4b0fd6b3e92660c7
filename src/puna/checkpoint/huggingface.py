"""The files of a Hugging Face folder: which hold the weights, and the tensors in them."""

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
"""The names of a folder's weights, the preferred first; each may instead be an index of several files."""


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a folder's weights, and the index that says what is where; None for a single file."""

    paths: tuple[Path, ...]
    index: Path | None = None
    placed: dict[str, str] | None = None


def find_weight_files(folder: Path) -> WeightFiles:
    """The weight files of `folder`, safetensors before torch's, a single file before an index, and
    where there is neither, the only safetensors file, whatever its name.

    Raises:
        CheckpointError: there are none, or the index is damaged or names files that are not in the folder.
    """
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return WeightFiles((folder / name,))
        if (folder / f"{name}.index.json").exists():
            return _read_index(folder, folder / f"{name}.index.json")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:  # AutoGPTQ named it after the number of bits
        return WeightFiles((others[0],))
    names = " or ".join(f"{name}[.index.json]" for name in WEIGHT_FILES)
    raise CheckpointError(f"{folder}: no weights: it holds neither {names} nor a .gguf file. Download the folder again")


def _read_index(folder: Path, index: Path) -> WeightFiles:
    placed = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(f"{index}: weight_map must map names of tensors to names of files; download it again")
    paths = []
    for name in sorted(set(placed.values())):
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index}: names the file {name[:200]!r}; only files inside the folder are read")
        if not (folder / name).is_file():
            raise CheckpointError(f"{index}: names {name[:200]!r}, which is not in the folder; download it too")
        paths.append(folder / name)
    return WeightFiles(tuple(paths), index, placed)


def read_tensors(files: WeightFiles) -> dict[str, StoredTensor]:
    """All tensors of `files` under their stored names.

    Raises:
        CheckpointError: a file is damaged, or holds other tensors than the index says (ignored ones aside, which some
            indexes leave out and some shards lack).
    """
    tensors: dict[str, StoredTensor] = {}
    for path in files.paths:
        held = open_tensor_file(path)
        if files.placed is not None:
            _check_place(files.placed, path, held)
        tensors |= held
    if files.placed is not None:
        missing = [name for name in files.placed if name not in tensors and not is_ignored(name)]
        if missing:
            file = files.placed[missing[0]]
            raise CheckpointError(
                f"{files.index}: tensor {missing[0]!r} is not in {file!r}; the files do not belong together"
            )
    return tensors


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors or torch file; which of the two is told from its content."""
    return open_safetensors(path).tensors if sniff(path) == "safetensors" else open_torch_zip(path).tensors


def _check_place(placed: dict[str, str], path: Path, held: dict[str, StoredTensor]) -> None:
    for name in held:
        if placed.get(name) != path.name and not is_ignored(name):
            said = f"{placed[name]!r}" if name in placed else "nowhere"
            raise CheckpointError(
                f"{path}: holds tensor {name!r}, which the index places {said}; the files do not belong together"
            )
