"""Reads Meta's layout: `params.json` and shards `consolidated.00.pth`, `.01.pth`, ... with slices of each matrix.

Slices are joined row by row when a tensor is read, so that the whole model is never in memory. Missing shards and
shards of different models are detected from shapes and from the norms, of which each shard has a copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puna.checkpoint.leftovers import plain_names
from puna.checkpoint.meta_params import PARAMS, RELEASES, Params, config_from_params, read_params, release
from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors, interleaved_rows, meta_split, to_hf
from puna.checkpoint.validation import refuse_extra
from puna.checkpoint.weight import RowSource, Weight
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError, show
from puna.files import has_file
from puna.formats.blocks import StoredTensor
from puna.formats.mapped import release as release_memory
from puna.formats.torch_zip import open_torch_zip

_SHARD = re.compile(r"consolidated\.(\d{2})\.pth")

Shard = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class MetaModel:
    """A model in Meta's layout: its files, configurations and tensors by Hugging Face's names."""

    files: tuple[Path, ...]
    config: LlamaConfig
    generation_config: GenerationConfig
    tensors: dict[str, Weight]
    notes: tuple[str, ...] = ()


def is_meta_folder(folder: Path) -> bool:
    """Whether the folder has a file of Meta's layout."""
    return has_file(folder / PARAMS, CheckpointError) or any(folder.glob("consolidated.*.pth"))


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"consolidated.{number:02}.pth"


def open_meta(folder: Path, version: str | None = None) -> MetaModel:
    """Opens a folder: reads headers, checks that the shards' copies of a tensor are equal, and detects a tied head.

    Args:
        version: one of `RELEASES`; None detects it from the parameters.

    Raises:
        CheckpointError: a shard is missing or damaged, or the files belong to different models.
    """
    if version is not None and version not in RELEASES:
        raise CheckpointError(f"Llama version must be one of {', '.join(RELEASES)}, got {show(version)}")
    paths = find_shards(folder)
    params = read_params(folder / PARAMS)
    translated = [_translate(path) for path in paths]
    shards = [shard for shard, _ in translated]
    _check_names_and_formats(paths, shards)
    _check_layers(folder, params, shards[0])
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
    return MetaModel(tuple(paths), config, generation, tensors, tuple(translated[0][1]))


def find_shards(folder: Path) -> list[Path]:
    """Returns the shards in order; raises CheckpointError if any shard or `params.json` is missing."""
    shards = {int(match[1]): path for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))}
    if not shards:
        raise CheckpointError(f"{folder}: contains {PARAMS}, but no {shard_name(0)}; download the weights too")
    missing = [shard_name(number) for number in range(max(shards)) if number not in shards]
    if missing:
        raise CheckpointError(
            f"{folder}: {', '.join(missing)[:200]} missing (found {len(shards)} shards); download the missing files"
        )
    if not has_file(folder / PARAMS, CheckpointError):
        raise CheckpointError(f"{folder}: no {PARAMS}, which describes the model; download it too")
    return [shards[number] for number in sorted(shards)]


def _translate(path: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns a shard's tensors by Hugging Face's names, and notes on the names and on ignored tensors."""
    translated: dict[str, StoredTensor] = {}
    extra = []
    stored = open_torch_zip(path).tensors
    try:
        plain, notes = plain_names(stored, ("tok_embeddings.weight",))
        for name, tensor in plain.items():
            hf_name = to_hf(name, "meta")
            if hf_name is None:
                extra.append(name)
            else:
                translated[hf_name] = tensor
        refuse_extra(extra)
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    if EMBEDDING not in translated:
        raise CheckpointError(f"{path}: no tok_embeddings.weight; the file is not a language model, or incomplete")
    return translated, notes


def _check_layers(folder: Path, params: Params, shard: Shard) -> None:
    """Raises CheckpointError if there are fewer layers than `n_layers`, before a table of all their names is built."""
    layers = sum(name.endswith(".input_layernorm.weight") for name in shard)
    if params.layers > layers:
        raise CheckpointError(
            f"{folder}: {PARAMS} has n_layers {params.layers}, but the shards have {layers} layers; a shard is "
            f"incomplete, or {PARAMS} belongs to another model"
        )


def _check_names_and_formats(paths: Sequence[Path], shards: Sequence[Shard]) -> None:
    for path, shard in zip(paths[1:], shards[1:], strict=True):
        unmatched = sorted(shard.keys() ^ shards[0].keys())
        other_formats = [name for name in shard if name in shards[0] and shard[name].format != shards[0][name].format]
        if unmatched or other_formats:
            flaw = "is missing here or in" if unmatched else "differs in format from the one in"
            raise CheckpointError(
                f"{path}: tensor {(unmatched or other_formats)[0]!r} {flaw} {paths[0].name}; the files belong to "
                "different models"
            )


def _vocabulary(folder: Path, params: Params, shards: Sequence[Shard]) -> int:
    """Returns the number of rows of the complete embedding, of which each shard has some of the rows or columns."""
    shape = shards[0][EMBEDDING].shape
    split_by_rows = len(shape) == 2 and shape[1] == params.dim  # as in Llama 3, and with a single shard
    rows = shape[0] * len(shards) if split_by_rows else shape[0]
    if params.vocabulary is not None and params.vocabulary != rows:
        raise CheckpointError(
            f"{folder}: {PARAMS} has vocab_size {params.vocabulary}, but {len(shards)} shard(s) of shape {shape} have "
            f"{rows} rows. A shard is missing, or {PARAMS} belongs to another model"
        )
    return rows


def _join(
    name: str, shape: tuple[int, ...], parts: list[StoredTensor], paths: Sequence[Path], config: LlamaConfig
) -> Weight:
    """Joins the slices of a tensor; `shape` is its shape according to the configuration."""
    axis = meta_split(name, shape)
    if len(parts) > 1 and axis is None:
        _check_copies(name, parts, paths)
        parts = parts[:1]
    if name == EMBEDDING and parts[0].shape[1:] == shape[1:]:
        axis = 0
    axis = axis or 0
    extent = sum(part.shape[axis] for part in parts) if len(parts[0].shape) == len(shape) else -1
    if axis == 0 and extent > shape[0] and extent % shape[0] == 0 and len(parts) % (extent // shape[0]) == 0:
        parts = _without_copies(name, parts, extent // shape[0], paths)
        extent = shape[0]
    other_axes = {part.shape[1 - axis :][:1] for part in parts}  # the other axis must be the same in all slices
    if extent != shape[axis] or other_axes != {shape[1 - axis :][:1]}:
        raise CheckpointError(
            f"{paths[0].parent}: tensor {name!r}: {PARAMS} requires the shape {shape}; {len(parts)} shard(s) have "
            f"{', '.join(str(part.shape) for part in parts[:3])}{' ...' if len(parts) > 3 else ''}. "
            f"{_cause(shape[axis], parts[0].shape[axis:][:1], len(parts))}"
        )
    return Weight(name, tuple(parts), axis, interleaved_rows(name, config))


def _cause(expected: int, slice_size: tuple[int, ...], shards: int) -> str:
    if slice_size and expected % slice_size[0] == 0 and expected // slice_size[0] > shards:
        return f"{expected // slice_size[0]} shards would fit: one is missing, or {PARAMS} belongs to another model"
    return f"{PARAMS} or a shard belongs to another model"


def _check_copies(name: str, parts: Sequence[StoredTensor], paths: Sequence[Path]) -> None:
    for part, path in zip(parts[1:], paths[1:], strict=True):
        if part.shape != parts[0].shape or not np.array_equal(part.data, parts[0].data):
            raise CheckpointError(
                f"{path}: {name} differs from {paths[0].name}, but must be equal in all shards of a model; the shards "
                f"and {PARAMS} do not all belong to one model"
            )


def _without_copies(name: str, parts: list[StoredTensor], copies: int, paths: Sequence[Path]) -> list[StoredTensor]:
    """Drops copies: if there are fewer key-value heads than shards, `copies` consecutive shards have the same heads."""
    for first in range(0, len(parts), copies):
        group = slice(first, first + copies)
        _check_copies(name, parts[group], paths[group])
        for part in parts[group]:
            release_memory(part.raw)
    return parts[::copies]


def same_bytes(one: RowSource, other: RowSource) -> bool:
    """Whether two matrices have the same bytes. Reads 16 rows first: different matrices nearly always differ there."""
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
