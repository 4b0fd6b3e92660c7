"""A model saved as a Hugging Face folder: configurations, and weight files with an index if there are several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from puna.config import GenerationConfig, LlamaConfig
from puna.files import folder_path, storage_errors, write_json
from puna.files.atomic_folder import replace_files, temporary_staging
from puna.formats.new_tensor import Buffer, NewTensor, Producer
from puna.saving.shards import new_tensor, split_into_shards, weight_index, write_shard
from puna.saving.weight_files import SAFETENSORS, WeightFiles

_CONFIG, _GENERATION = "config.json", "generation_config.json"


def save_checkpoint(
    folder: str | Path,
    config: LlamaConfig,
    tensors: Iterable[tuple[str, str, tuple[int, ...], Buffer | Producer]],
    generation: GenerationConfig | None = None,
    max_shard_size: int | str = "5GB",
    files: WeightFiles = SAFETENSORS,
    write: Callable[[Path, Sequence[NewTensor]], None] | None = None,
) -> list[Path]:
    """Writes a model into `folder`, which is created if needed; returns the files, config.json last.

    The files of an earlier save are replaced together (`replace_files`): a failed save leaves them unchanged, and a
    killed save never leaves a mixture that loads.

    Args:
        config: written unchanged; the caller makes sure that it matches the tensors.
        tensors: (name, type, shape, data) of each tensor. The type has puna's or torch's name ("bf16", "bfloat16"). The
            data are bytes in C order, or a function that returns them and is called when they are written, so that
            only one tensor is in memory.
        generation: None for a model without a language model's head.
        max_shard_size: bytes, or a string such as "5GB" or "200MiB"; a larger tensor gets a separate file.
        files: the names of the weight files. With names of PyTorch files, safetensors files of an earlier save are
            removed, because every reader would prefer them.
        write: writes a weight file; by default as safetensors.

    Raises:
        CheckpointError: an unknown type, a duplicate name, data of the wrong size, or an invalid shard size.
        ConfigError: a configuration that JSON cannot hold.
        StorageError: the disk is full, or a file cannot be written.
    """
    new = [new_tensor(name, kind, shape, data) for name, kind, shape, data in tensors]
    shards = split_into_shards(new, max_shard_size, files=files)
    target = folder_path(folder)
    with storage_errors(target), temporary_staging(target) as staging:
        config.save_pretrained(staging)
        if generation is not None:
            generation.save_pretrained(staging)
        for name, shard in shards.items():
            (write or write_shard)(staging / name, shard)
        names = list(shards)
        if len(shards) > 1:
            write_json(staging / files.index, weight_index(shards))
            names.append(files.index)
        names += [_GENERATION] if generation is not None else []
        names.append(_CONFIG)
        outdated = [
            path.name for path in target.iterdir() if _is_of_earlier_save(path.name, files) and path.name not in names
        ]
        replace_files(staging, target, names, outdated)
    return [target / name for name in names]


def _is_of_earlier_save(name: str, files: WeightFiles) -> bool:
    """Whether the name is one that an earlier save with other options may have written."""
    return files.include(name) or SAFETENSORS.with_variant(files.variant).include(name) or name == _GENERATION
