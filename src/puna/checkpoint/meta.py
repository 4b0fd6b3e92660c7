"""Meta's own layout: `params.json` beside `consolidated.00.pth`, `.01.pth`, ..., each a slice of every tensor.

Slices are joined as they are read, never in memory as a whole. Shards that do not belong together, or are missing, are
found from shapes and from the norms, of which each shard has a copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puna.checkpoint.meta_params import PARAMS, RELEASES, Params, config_from_params, read_params, release
from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors, interleaved_rows, is_ignored, meta_split, to_hf
from puna.checkpoint.validation import refuse_extra
from puna.checkpoint.weight import RowSource, Weight
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError
from puna.formats.blocks import StoredTensor
from puna.formats.mapped import release as forget
from puna.formats.torch_zip import open_torch_zip

_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")

Shard = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class MetaModel:
    """What `open_meta` found."""

    files: tuple[Path, ...]
    config: LlamaConfig
    generation_config: GenerationConfig
    tensors: dict[str, Weight]


def is_meta_folder(folder: Path) -> bool:
    """Whether the folder is laid out as Meta's downloads are."""
    return (folder / PARAMS).exists() or any(folder.glob("consolidated.*.pth"))


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"consolidated.{number:02}.pth"


def open_meta(folder: Path, version: str | None = None) -> MetaModel:
    """Opens a folder; reads headers and norms only.

    Args:
        version: one of `RELEASES`, where it is known; None finds it from the parameters.

    Raises:
        CheckpointError: a shard is missing, damaged, or belongs to another model than its neighbours or `params.json`.
    """
    if version is not None and version not in RELEASES:
        raise CheckpointError(f"Llama version {version!r}; one of {', '.join(RELEASES)} is needed")
    paths = find_shards(folder)
    params = read_params(folder / PARAMS)
    shards = [_translate(path) for path in paths]
    _check_same_names(paths, shards)
    rows = _vocabulary(folder, params, shards)
    dtype = shards[0][EMBEDDING].format.torch
    tied = HEAD not in shards[0]
    config, generation = config_from_params(params, rows, tied, dtype, version or release(params, rows))
    tensors = {
        name: _join(name, shape, [shard[name] for shard in shards], paths, config)
        for name, shape in expected_tensors(config, "lm")
        if name in shards[0]
    }
    refuse_extra(sorted(shards[0].keys() - tensors.keys()))
    if not tied and same_bytes(tensors[EMBEDDING], tensors[HEAD]):
        config, generation = config_from_params(params, rows, True, dtype, version or release(params, rows))
        del tensors[HEAD]
    return MetaModel(tuple(paths), config, generation, tensors)


def find_shards(folder: Path) -> list[Path]:
    """The shards in their order; raises CheckpointError where there is none, or one between others is missing."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if not found:
        raise CheckpointError(f"{folder}: {PARAMS}, but no {shard_name(0)}; download the weights too")
    missing = [shard_name(number) for number in range(max(found)) if number not in found]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)[:200]} missing among {len(found)} shards; download it too"
        )
    if not (folder / PARAMS).is_file():
        raise CheckpointError(f"{folder}: no {PARAMS}, which says what the shards are; download it too")
    return [found[number] for number in sorted(found)]


def _translate(path: Path) -> dict[str, StoredTensor]:
    """A shard's tensors under Hugging Face's names."""
    named: dict[str, StoredTensor] = {}
    extra = []
    for name, tensor in open_torch_zip(path).tensors.items():
        if is_ignored(name):
            continue
        new = to_hf(name, "meta")
        if new is None:
            extra.append(name)
        else:
            named[new] = tensor
    try:
        refuse_extra(extra)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    if EMBEDDING not in named:
        raise CheckpointError(f"{path}: has no tok_embeddings.weight; the file is no language model, or not whole")
    return named


def _check_same_names(paths: Sequence[Path], shards: Sequence[Shard]) -> None:
    for path, shard in zip(paths[1:], shards[1:], strict=True):
        odd = sorted(shard.keys() ^ shards[0].keys())
        other = [name for name in shard if name in shards[0] and shard[name].format != shards[0][name].format]
        if odd or other:
            raise CheckpointError(
                f"{path}: tensor {(odd or other)[0]!r} is not as in {paths[0].name}; they belong to different models"
            )


def _vocabulary(folder: Path, params: Params, shards: Sequence[Shard]) -> int:
    """Rows of the embedding, whichever axis the shards divide; `params.json` must not contradict them."""
    shape = shards[0][EMBEDDING].shape
    divided = len(shape) == 2 and shape[1] == params.dim  # along the vocabulary, or not at all
    rows = shape[0] * len(shards) if divided else shape[0]
    if params.vocabulary is not None and params.vocabulary != rows:
        raise CheckpointError(
            f"{folder}: {PARAMS} says vocab_size {params.vocabulary}; {len(shards)} shard(s) of shape {shape} hold "
            f"{rows} rows. A shard is missing, or {PARAMS} belongs to another model"
        )
    return rows


def _join(
    name: str, shape: tuple[int, ...], parts: list[StoredTensor], paths: Sequence[Path], config: LlamaConfig
) -> Weight:
    """One tensor from its slices; `shape` is what the configuration asks for."""
    axis = meta_split(name, shape)
    if len(parts) > 1 and axis is None:
        _check_copies(name, parts, paths)
        parts = parts[:1]
    if name == EMBEDDING and parts[0].shape[1:] == shape[1:]:
        axis = 0
    axis = axis or 0
    held = sum(part.shape[axis] for part in parts) if len(parts[0].shape) == len(shape) else -1
    if axis == 0 and held > shape[0] and held % shape[0] == 0 and len(parts) % (held // shape[0]) == 0:
        parts = _without_copies(name, parts, held // shape[0], paths)
        held = shape[0]
    other = next((part for part in parts if part.shape[1 - axis :][:1] != parts[0].shape[1 - axis :][:1]), None)
    fits = held == shape[axis] and other is None and parts[0].shape[1 - axis :][:1] == shape[1 - axis :][:1]
    if not fits:
        raise CheckpointError(
            f"{paths[0].parent}: tensor {name!r}: {PARAMS} asks for {shape}; {len(parts)} shard(s) hold "
            f"{', '.join(str(part.shape) for part in parts[:3])}{' ...' if len(parts) > 3 else ''}. "
            f"{_why(shape[axis], parts[0].shape[axis:][:1], len(parts))}"
        )
    return Weight(name, tuple(parts), axis, interleaved_rows(name, config))


def _why(wanted: int, each: tuple[int, ...], shards: int) -> str:
    if each and wanted % each[0] == 0 and wanted // each[0] > shards:
        return f"{wanted // each[0]} shards would: one is missing, or {PARAMS} belongs to another model"
    return f"{PARAMS} belongs to another model, or a shard does"


def _check_copies(name: str, parts: Sequence[StoredTensor], paths: Sequence[Path]) -> None:
    for part, path in zip(parts[1:], paths[1:], strict=True):
        if part.shape != parts[0].shape or not np.array_equal(part.data, parts[0].data):
            raise CheckpointError(
                f"{path}: {name} differs from that of {paths[0].name}, where shards of one model are the same; they "
                f"belong to different models, or {PARAMS} does"
            )


def _without_copies(name: str, parts: list[StoredTensor], copies: int, paths: Sequence[Path]) -> list[StoredTensor]:
    """Where there are more shards than key-value heads, consecutive shards have the same ones: the first of each."""
    for first in range(0, len(parts), copies):
        group = slice(first, first + copies)
        _check_copies(name, parts[group], paths[group])
        for part in parts[group]:
            forget(part.raw)
    return parts[::copies]


def same_bytes(one: RowSource, other: RowSource) -> bool:
    """Whether two matrices have the same bytes; the first rows tell nearly always."""
    if one.shape != other.shape or one.format != other.format:
        return False
    rows = np.arange(one.shape[0])
    for piece in np.split(rows, range(16, len(rows), 512)):
        equal = np.array_equal(one.take(piece), other.take(piece))
        one.release()
        other.release()
        if not equal:
            return False
    return True
