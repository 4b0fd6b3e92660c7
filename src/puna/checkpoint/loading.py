"""`open_checkpoint`: a model's configuration and weights, whatever files they are in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from puna.checkpoint.gguf_config import read_gguf_config
from puna.checkpoint.gguf_rope import FACTOR_TENSORS
from puna.checkpoint.grouped import join_packed, read_settings
from puna.checkpoint.huggingface import find_weight_files, read_tensors
from puna.checkpoint.meta import is_meta_folder, open_meta
from puna.checkpoint.names import Head, interleaved_rows, is_ignored, to_hf
from puna.checkpoint.validation import check_tensors, drop_tied_head, find_head, full_names, refuse_extra
from puna.checkpoint.weight import Weight
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import CheckpointError, ModelNotFoundError
from puna.formats.blocks import StoredTensor
from puna.formats.gguf import GgufFile, open_gguf
from puna.formats.grouped import GroupedMatrix
from puna.formats.mapped import sniff

Kind = Literal["hf", "gguf", "meta"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, validated: `tensors` are exactly those that `config` and `head` ask for.

    Attributes:
        path: what was opened.
        kind: "hf", a folder in Hugging Face's layout; "gguf"; or "meta", a folder in Meta's.
        files: the files that hold the weights.
        generation_config: None where the folder has none.
        tensors: under Hugging Face's names, beginning with "model." also where the files belong to a bare model, with
            q and k rows in Hugging Face's order. A tied head is not among them.
        head: what stands on the hidden states: "lm" (also when tied), "classification" (`score.weight`), or "none". A
            model class with another head than this has to make its own.
        tokenizer: the folder or file to load its tokenizer from.
    """

    path: Path
    kind: Kind
    files: tuple[Path, ...]
    config: LlamaConfig
    generation_config: GenerationConfig | None
    tensors: Mapping[str, Weight]
    head: Head
    tokenizer: Path

    @property
    def generation(self) -> GenerationConfig:
        """The settings in effect: those of generation_config.json, else those of the model's configuration."""
        return self.generation_config or GenerationConfig.from_model_config(self.config)


def open_checkpoint(path: str | Path, version: str | None = None) -> Checkpoint:
    """Opens a folder in Hugging Face's or Meta's layout, a GGUF file, or a folder with one; reads headers only,
    and of what GPTQ or AWQ packed the zeros and groups.

    Args:
        version: the release of Meta's files ("1", "2", "code", "3", "3.1", ...), where they do not show it.

    Raises:
        ModelNotFoundError: there is nothing at `path`.
        CheckpointError: the files are damaged, do not fit the configuration, or are of a kind puna does not run.
        ConfigError: the configuration is not that of a LLaMA.
    """
    place = find_model(Path(path))
    if place.is_dir() and not _is_huggingface(place):
        return _open_meta(place, version)
    if version is not None:
        raise CheckpointError(f"{place}: a Llama version ({version!r}) is for Meta's files alone; leave it out")
    return open_gguf_model(open_gguf(place)) if place.is_file() else _open_folder(place)


def find_model(path: Path) -> Path:
    """The GGUF file at or in `path`, or the folder in Hugging Face's or Meta's layout that `path` is."""
    if path.is_file():
        kind = sniff(path)
        if kind != "gguf":
            raise CheckpointError(
                f"{path}: a single {kind} file lacks its configuration; give the folder with config.json"
            )
        return path
    if not path.is_dir():
        raise ModelNotFoundError(f"{path}: no such file or folder; give a Hugging Face folder or a GGUF file")
    found = sorted(path.glob("*.gguf"))
    if _is_huggingface(path):
        return path
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found[:5])
        raise CheckpointError(f"{path}: {len(found)} GGUF files ({names}); give the path of one of them")
    if is_meta_folder(path):
        return path
    raise ModelNotFoundError(
        f"{path}: neither config.json, params.json nor a .gguf file in this folder; is it the model's?"
    )


def _is_huggingface(folder: Path) -> bool:
    """Whether the folder has a config.json, and weights of Hugging Face's or at least no others."""
    if not (folder / "config.json").exists():
        return False
    own = any(folder.glob("*.safetensors*")) or any(folder.glob("*.bin*"))
    return own or not (any(folder.glob("*.gguf")) or is_meta_folder(folder))


def open_gguf_model(file: GgufFile) -> Checkpoint:
    """The model in an open GGUF file."""
    config, generation = read_gguf_config(file)
    try:
        named = _translate(file)
        check_tensors(config, "lm", named)
    except CheckpointError as exc:
        raise CheckpointError(f"{file.path}: {exc}") from exc
    tensors = {name: Weight(name, (tensor,), order=interleaved_rows(name, config)) for name, tensor in named.items()}
    return Checkpoint(file.path, "gguf", (file.path,), config, generation, tensors, "lm", file.path)


def _translate(file: GgufFile) -> dict[str, StoredTensor]:
    """The tensors under Hugging Face's names, without those that `rope_scaling` has read and those that are ignored."""
    named: dict[str, StoredTensor] = {}
    extra = []
    for name, tensor in file.tensors.items():
        if name in FACTOR_TENSORS or is_ignored(name):
            continue
        new = to_hf(name, "gguf")
        if new is None:  # not even one that Hugging Face calls so: it must not take the place of the real one
            extra.append(name)
            continue
        assert new not in named, "the table of names gives each GGUF name a Hugging Face name of its own"
        named[new] = tensor
    refuse_extra(extra)
    return named


def _open_folder(folder: Path) -> Checkpoint:
    config = LlamaConfig.from_pretrained(folder)
    settings = read_settings(folder, config.extra.pop("quantization_config", None))
    has_generation = (folder / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(folder) if has_generation else None
    files = find_weight_files(folder)
    tensors, head = _validated(folder, config, read_tensors(files), settings)
    weights = {name: Weight(name, (tensor,)) for name, tensor in tensors.items()}
    return Checkpoint(folder, "hf", files.paths, config, generation, weights, head, folder)


def _open_meta(folder: Path, version: str | None) -> Checkpoint:
    model = open_meta(folder, version)
    try:
        check_tensors(model.config, "lm", model.tensors)
    except CheckpointError as exc:
        raise CheckpointError(f"{folder}: {exc}") from exc
    # Llama 1's download has one tokenizer for all sizes, beside their folders.
    beside = not (folder / "tokenizer.model").exists() and (folder.parent / "tokenizer.model").exists()
    tokenizer = folder.parent / "tokenizer.model" if beside else folder
    return Checkpoint(
        folder, "meta", model.files, model.config, model.generation_config, model.tensors, "lm", tokenizer
    )


def _validated(
    folder: Path, config: LlamaConfig, stored: dict[str, StoredTensor], settings: Mapping[str, Any] | None
) -> tuple[dict[str, StoredTensor | GroupedMatrix], Head]:
    try:
        tensors = join_packed(full_names(stored), settings, config)
        bare = not any(name.startswith("model.") for name in stored)
        head = find_head(config, tensors, bare)
        drop_tied_head(config, tensors)
        check_tensors(config, head, tensors)
    except CheckpointError as exc:
        raise CheckpointError(f"{folder}: {exc}") from exc
    return tensors, head
