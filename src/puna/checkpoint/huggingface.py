"""Finds the weight files of a Hugging Face folder and reads their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from puna.checkpoint.adapter import is_adapter_file
from puna.checkpoint.names import HEAD, Head, is_ignored
from puna.config import LlamaConfig
from puna.errors import CheckpointError, ModelNotFoundError, show
from puna.files import PartName, has_file, parse_part_name, read_json
from puna.formats.blocks import StoredTensor
from puna.formats.mapped import sniff
from puna.formats.safetensors import open_safetensors
from puna.formats.torch_zip import open_torch_zip

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of a single weight file, in order of preference. For several files, NAME.index.json lists them instead."""


Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class Reading:
    """Options of a reader of Hugging Face folders.

    Attributes:
        head: the head of the class to load. If it is not "lm", the files may lack a language-model head. None: the
            configuration or the files decide.
        heads: names of the tensors that only the class to load has: those of its head.
        config: used if the folder has no config.json.
        variant: part of the names of the weight files, as in model.fp16.safetensors.
        use_safetensors: True reads only safetensors files, False only PyTorch files; None prefers safetensors.
        key_mapping: regular expressions and the texts that replace their matches in the stored names.
        pruned_heads: whether the class to load supports a model from which attention heads were removed.
    """

    head: Head | None = None
    heads: frozenset[str] = frozenset()
    config: LlamaConfig | None = None
    variant: str | None = None
    use_safetensors: bool | None = None
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    pruned_heads: bool = False

    def rename(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the tensors with their names changed by `key_mapping`.

        Raises:
            CheckpointError: a pattern is invalid, or two tensors get the same name.
        """
        renamed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            new = name
            for pattern, replacement in self.key_mapping.items():
                new = _replace(pattern, replacement, new)
            if new in renamed:
                raise CheckpointError(f"key_mapping gives several tensors the name {show(new)}; correct it")
            renamed[new] = tensor
        return renamed


def _replace(pattern: str, replacement: str, name: str) -> str:
    try:
        return re.sub(pattern, replacement, name)
    except (re.error, IndexError, TypeError) as exc:
        text = (
            f"key_mapping has the pattern {show(pattern)} with the replacement {show(replacement)}: {exc}; correct it"
        )
        raise CheckpointError(text) from exc


DEFAULT = Reading()


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a folder, and, if it has an index, the index and its map from tensor names to file names."""

    paths: tuple[Path, ...]
    index: Path | None = None
    weight_map: dict[str, str] | None = None
    notes: tuple[str, ...] = ()


def find_weight_files(folder: Path, reading: Reading = DEFAULT) -> WeightFiles:
    """Returns the weight files of a folder. Prefers safetensors to torch files, and a single file to an index.

    Without a file named in `WEIGHT_FILES` or its index, the result is a complete set of shards, or the only safetensors
    file, whatever its name.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or the index is damaged or names files that the
            folder does not contain.
        ModelNotFoundError: the folder has no weights of the variant or kind that `reading` selects.
    """
    selected = [name for name in WEIGHT_FILES if reading.use_safetensors in (None, name.endswith(".safetensors"))]
    for name in selected:
        name, index_name = _with_variant(name, reading.variant), _with_variant(f"{name}.index.json", reading.variant)
        index = folder / index_name
        if has_file(folder / name, CheckpointError):
            unused = has_file(index, CheckpointError)
            notes = (f"{index.name} ignored, since the folder contains {name}",) if unused else ()
            return WeightFiles((folder / name,), notes=notes)
        if has_file(index, CheckpointError):
            return _read_index(folder, index)
    if reading.variant is not None or reading.use_safetensors is False:
        names = " or ".join(_with_variant(name, reading.variant) for name in selected)
        present = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")))
        raise ModelNotFoundError(
            f"{folder} does not appear to have a file named {names}; its weight files are: {present or 'none'}. Choose "
            "one of them with variant and use_safetensors, or omit both"
        )
    others = [path for path in sorted(folder.glob("*.safetensors")) if not is_adapter_file(path)]
    for files in (others, [] if reading.use_safetensors else sorted(folder.glob("*.bin"))):
        if shards := _shards_without_index(folder, files):
            return WeightFiles(shards, notes=(f"no index lists the {len(shards)} shards; all of them are read",))
    if len(others) == 1:  # AutoGPTQ's file name contains the number of bits
        return WeightFiles((others[0],))
    if others:
        names = ", ".join(path.name for path in others[:5])
        raise CheckpointError(
            f"{folder}: {len(others)} safetensors files ({names}), which no index lists and which are not named as "
            f"shards; add {WEIGHT_FILES[0]}.index.json"
        )
    names = ", ".join(f"{name}[.index.json]" for name in selected)
    raise CheckpointError(f"{folder}: no weights: the folder contains no {names} or .gguf file. Download it again")


def _with_variant(name: str, variant: str | None) -> str:
    """Returns the name of a file with a variant before its last ending: model.fp16.safetensors."""
    stem, _, ending = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{ending}"


def has_weights(folder: Path) -> bool:
    """Whether `find_weight_files` would read files of the folder, or report files of weights that are incomplete."""
    names = {*WEIGHT_FILES, *(f"{name}.index.json" for name in WEIGHT_FILES)}
    return any(
        path.name in names or _shard(path) is not None or (path.suffix == ".safetensors" and not is_adapter_file(path))
        for path in folder.iterdir()
    )


def _read_index(folder: Path, index: Path) -> WeightFiles:
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(type(file) is str for file in weight_map.values()):
        raise CheckpointError(f"{index}: weight_map must map names of tensors to names of files; download it again")
    paths = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in ("", "..") or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index}: names the file {show(name)}; puna reads only files inside the folder")
        if not has_file(folder / name, CheckpointError):
            raise CheckpointError(f"{index}: names {show(name)}, which is not in the folder; download it too")
        paths.append(folder / name)
    unlisted = _unlisted_shards(folder, paths)
    notes = tuple(f"the index lists no tensor of {path.name}, which is read too" for path in unlisted)
    return WeightFiles(tuple(sorted([*paths, *unlisted])), index, weight_map, notes)


def _shards_without_index(folder: Path, files: list[Path]) -> tuple[Path, ...]:
    """Returns the files that are named as shards, in order.

    Raises:
        CheckpointError: shards are missing, or belong to several sets.
    """
    shards = {path: part for path in files if (part := _shard(path))}
    sets = {(part.prefix, part.count): part for part in shards.values()}
    if len(sets) > 1:
        names = ", ".join(f"{prefix}-...-of-{count:05}" for prefix, count in sorted(sets)[:5])
        raise CheckpointError(f"{folder}: no index lists the shards, which belong to several sets ({names}); add one")
    for part in sets.values():
        numbers = {item.number for item in shards.values()}
        missing = [replace(part, number=number) for number in range(1, part.count + 1) if number not in numbers]
        if missing:
            raise CheckpointError(
                f"{folder}: {len(missing)} of {part.count} shards are missing, such as {missing[0]}, and so is the "
                "index; download them"
            )
    return tuple(shards)


def _shard(path: Path) -> PartName | None:
    """Returns the parsed name of a shard; None if the file is not named as a shard."""
    part = parse_part_name(path.name)
    return None if part is None or part.ending == ".gguf" else part


def _unlisted_shards(folder: Path, paths: list[Path]) -> list[Path]:
    """Returns the shards that belong to the same set as `paths`, but are not in `paths`."""
    sets = {(part.prefix, part.count) for path in paths if (part := _shard(path))}
    others = [path for path in folder.iterdir() if path not in paths]
    return [path for path in others if (part := _shard(path)) and (part.prefix, part.count) in sets]


def read_tensors(files: WeightFiles) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns all tensors of the files, by their stored names, and notes on the differences from the index.

    Raises:
        CheckpointError: a file is damaged, two files contain the same tensor, or a tensor is not in the file that the
            index names.
    """
    tensors: dict[str, StoredTensor] = {}
    unlisted = []
    for path in files.paths:
        for name, tensor in open_tensor_file(path).items():
            listed = path.name if files.weight_map is None else files.weight_map.get(name)
            if listed is None and not is_ignored(name):
                unlisted.append(name)
            if name in tensors or listed not in (None, path.name):
                where = "another file too" if name in tensors else f"{show(listed)} according to the index"
                raise CheckpointError(
                    f"{path}: contains tensor {name!r}, which is in {where}; the files do not belong together"
                )
            tensors[name] = tensor
    # A tied head may be listed, although it is not stored; `check_tensors` reports a missing head.
    missing = [name for name in files.weight_map or () if name not in tensors and name != HEAD and not is_ignored(name)]
    if missing and files.weight_map is not None:
        file = files.weight_map[missing[0]]
        raise CheckpointError(
            f"{files.index}: tensor {missing[0]!r} is not in {file!r}; the files do not belong together"
        )
    example = f"such as {show(unlisted[0])}" if unlisted else ""
    notes = [f"the index does not list {len(unlisted)} of the tensors, {example}; all are read"] if unlisted else []
    return tensors, [*files.notes, *notes]


def open_tensor_file(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors or torch file; the content, not the name, determines the format."""
    return open_safetensors(path).tensors if sniff(path) == "safetensors" else open_torch_zip(path).tensors
