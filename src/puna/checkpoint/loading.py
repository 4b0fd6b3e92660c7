"""`open_checkpoint`: reads a model's configuration and weights from files of any supported layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from puna.checkpoint.adapter import ADAPTER_CONFIG, refuse_adapter
from puna.checkpoint.gguf_config import read_gguf_config
from puna.checkpoint.gguf_rope import FACTOR_TENSORS
from puna.checkpoint.huggingface import DEFAULT, Reading, find_weight_files, has_weights, read_tensors
from puna.checkpoint.leftovers import dropped_note, plain_names
from puna.checkpoint.meta import is_meta_folder, open_meta
from puna.checkpoint.names import EMBEDDING, Head, interleaved_rows, is_ignored, to_hf
from puna.checkpoint.packed import join_packed, read_settings
from puna.checkpoint.quantization import Settings
from puna.checkpoint.validation import check_tensors, drop_tied_head, find_head, full_names, refuse_extra
from puna.checkpoint.weight import RowSource, Weight
from puna.config import GenerationConfig, LlamaConfig
from puna.config.pruning import pruned_heads
from puna.errors import CheckpointError, ModelNotFoundError, show
from puna.files import group_parts, has_file, reading_errors
from puna.formats.blocks import StoredTensor
from puna.formats.gguf import GgufFile, open_gguf
from puna.formats.mapped import sniff
from puna.hub import model_folder

Kind = Literal["hf", "gguf", "meta"]


@dataclass(frozen=True)
class Checkpoint:
    """A validated model on disk, with exactly the tensors that `config` and `head` require.

    Attributes:
        path: the folder or GGUF file; for a split model, the first part.
        kind: "hf", a folder in Hugging Face's layout; "gguf"; or "meta", a folder in Meta's layout.
        files: the weight files.
        generation_config: None if the folder has none.
        tensors: by Hugging Face's names (with "model." even if the files of a bare model lack it), with the rows of q
            and k in Hugging Face's order. A tied head is left out.
        head: the head of the model: "lm" (also when tied), "classification" (`score.weight`), or "none". A model class
            that needs a different head must initialise it.
        tokenizer: the folder or file from which to load the tokenizer.
        gguf: the open file of a GGUF model; while it is open, `open_gguf` does not read it again.
        notes: settings and tensors of the files that are ignored because they change nothing.
    """

    path: Path
    kind: Kind
    files: tuple[Path, ...]
    config: LlamaConfig
    generation_config: GenerationConfig | None
    tensors: Mapping[str, Weight]
    head: Head
    tokenizer: Path
    gguf: GgufFile | None = None
    notes: tuple[str, ...] = ()

    @property
    def generation(self) -> GenerationConfig:
        """The settings in effect: from generation_config.json if it exists, else from the model's configuration."""
        return self.generation_config or GenerationConfig.from_model_config(self.config)


@reading_errors(CheckpointError)
def open_checkpoint(path: str | Path, version: str | None = None, reading: Reading = DEFAULT) -> Checkpoint:
    """Opens a folder in Hugging Face's or Meta's layout, a GGUF file or part, or a folder with one GGUF model.

    Reads headers and the few tensors that must be compared: norms of Meta's shards, a stored tied head, GPTQ zeros.

    Args:
        version: the release of Meta's files ("1", "2", "code", "3", "3.1", ...); None detects it from the parameters.
        reading: options for a Hugging Face folder.

    Raises:
        ModelNotFoundError: there is no model at `path`.
        CheckpointError: the files are damaged, do not fit the configuration, or have a format that puna does not read.
        ConfigError: the configuration does not describe a LLaMA model.
    """
    if not isinstance(path, str | Path):
        raise ModelNotFoundError(f"path is {show(path)}; it must be a text or a Path")
    model = find_model(Path(path), reading.config is not None)
    is_huggingface = model.is_dir() and (_is_huggingface(model) or (reading.config is not None and has_weights(model)))
    if not is_huggingface and (reading.variant is not None or reading.use_safetensors or reading.key_mapping):
        raise CheckpointError(
            f"{model}: variant, use_safetensors and key_mapping apply only to Hugging Face folders; omit them"
        )
    if model.is_dir() and not is_huggingface:
        return _open_meta(model, version)
    if version is not None:
        raise CheckpointError(
            f"{model}: a Llama version ({show(version)}) applies only to Meta's files; give no version"
        )
    return _open_folder(model, reading) if is_huggingface else open_gguf_model(open_gguf(model))


@reading_errors(CheckpointError)
def find_model(path: Path, has_config: bool = False) -> Path:
    """Returns the GGUF file at or in `path`, or the folder of a model in Hugging Face's or Meta's layout.

    The folder is `path` itself, or the folder that `model_folder` finds. With `has_config`, it needs no config.json.
    """
    path = model_folder(path)
    if path.is_file():
        kind = sniff(path)
        if kind != "gguf":
            raise CheckpointError(
                f"{path}: a single {kind} file has no configuration; give the folder with config.json"
            )
        return path
    if not path.is_dir():
        has_file(path, CheckpointError)  # raises for a device or a link to nothing
        raise ModelNotFoundError(f"{path}: no such file or folder; give a Hugging Face folder or a GGUF file")
    os.scandir(path).close()  # glob() ignores a folder that cannot be read
    refuse_adapter(path)
    if _is_huggingface(path) or (has_config and has_weights(path)):
        return path
    models = group_parts(file.name for file in path.glob("*.gguf"))
    if len(models) == 1:
        return path / models[0][0]
    if models:
        names = ", ".join(files[0] for files in models[:5])
        raise CheckpointError(f"{path}: {len(models)} GGUF files ({names}); give the path of one of them")
    if is_meta_folder(path):
        return path
    inside = ", ".join(str(file.parent) for file in sorted(path.glob("*/config.json"))[:5])
    raise ModelNotFoundError(
        f"{path}: the folder contains neither config.json, params.json nor a .gguf file; give the folder of a model"
        + (f", such as {inside}" if inside else "")
    )


def _is_huggingface(folder: Path) -> bool:
    """Whether the folder has a config.json, and has weights in Hugging Face's layout or no files of another layout."""
    if not has_file(folder / "config.json", CheckpointError):
        return False
    return has_weights(folder) or not (any(folder.glob("*.gguf")) or is_meta_folder(folder))


def open_gguf_model(file: GgufFile) -> Checkpoint:
    """Returns the model of an open GGUF file, validated."""
    config, generation = read_gguf_config(file)
    try:
        stored, notes = _translate(file)
        check_tensors(config, "lm", stored)
    except CheckpointError as exc:
        raise CheckpointError(f"{file.path}: {exc}") from exc
    tensors = {name: Weight(name, (tensor,), order=interleaved_rows(name, config)) for name, tensor in stored.items()}
    all_notes = (*config.notes, *notes)
    return Checkpoint(file.path, "gguf", file.parts, config, generation, tensors, "lm", file.path, file, all_notes)


def _translate(file: GgufFile) -> tuple[dict[str, StoredTensor], list[str]]:
    """Returns the tensors by Hugging Face's names, without rotary factors (see `gguf_rope`) and ignored tensors.

    Also returns notes on the ignored tensors.
    """
    translated: dict[str, StoredTensor] = {}
    extra, ignored = [], []
    for name, tensor in file.tensors.items():
        if name in FACTOR_TENSORS or is_ignored(name):
            ignored += [name] if name not in FACTOR_TENSORS else []
            continue
        hf_name = to_hf(name, "gguf")
        if hf_name is None:  # refuses Hugging Face's names too: they could replace a translated tensor
            extra.append(name)
            continue
        assert hf_name not in translated, "the table gives each GGUF name a different Hugging Face name"
        translated[hf_name] = tensor
    refuse_extra(extra)
    return translated, dropped_note("cached rotary values", ignored)


def _open_folder(folder: Path, reading: Reading) -> Checkpoint:
    has_config = reading.config is None or has_file(folder / "config.json", CheckpointError)
    config = LlamaConfig.from_checkpoint(folder) if has_config or reading.config is None else reading.config
    if pruned_heads(config) and not reading.pruned_heads:
        raise CheckpointError(
            f"{folder}: attention heads were removed from this model (pruned_heads in config.json); only puna's "
            "PyTorch classes, such as LlamaForCausalLM, can load it"
        )
    settings = read_settings(folder, vars(config))
    file = folder / "generation_config.json"
    generation = GenerationConfig.from_pretrained(folder) if has_file(file, CheckpointError) else None
    files = find_weight_files(folder, reading)
    stored, notes = read_tensors(files)
    tensors, head, more_notes = _validate(folder, config, stored, settings, reading)
    weights = {name: Weight(name, (tensor,)) for name, tensor in tensors.items()}
    if generation is not None:
        notes += [f"{file.name}: {note}" for note in generation.notes]
    if has_file(folder / ADAPTER_CONFIG, CheckpointError):
        notes.append(f"{ADAPTER_CONFIG} ignored, since the folder contains no adapter")
    all_notes = (*config.notes, *notes, *more_notes)
    return Checkpoint(folder, "hf", files.paths, config, generation, weights, head, folder, notes=all_notes)


def _open_meta(folder: Path, version: str | None) -> Checkpoint:
    model = open_meta(folder, version)
    try:
        check_tensors(model.config, "lm", model.tensors)
    except CheckpointError as exc:
        raise CheckpointError(f"{folder}: {exc}") from exc
    # Llama 1's download has one tokenizer for all sizes, next to their folders.
    own, shared = (path / "tokenizer.model" for path in (folder, folder.parent))
    tokenizer = shared if not has_file(own, CheckpointError) and has_file(shared, CheckpointError) else folder
    config, generation = model.config, model.generation_config
    return Checkpoint(
        folder, "meta", model.files, config, generation, model.tensors, "lm", tokenizer, notes=model.notes
    )


def _validate(
    folder: Path, config: LlamaConfig, stored: dict[str, StoredTensor], settings: Settings | None, reading: Reading
) -> tuple[dict[str, RowSource], Head, list[str]]:
    """Returns the tensors of the model by their full names, its head, and notes on ignored tensors and settings."""
    try:
        plain, notes = plain_names(reading.rename(stored), (EMBEDDING, EMBEDDING.removeprefix("model.")))
        tensors, more_notes = join_packed(full_names(plain), settings, config)
        bare = not any(name.startswith("model.") for name in plain)
        own = {name: tensors.pop(name) for name in reading.heads & tensors.keys()}
        head = find_head(config, tensors, bare, reading.head)
        drop_tied_head(config, tensors)
        check_tensors(config, head, tensors)
        tensors.update(own)
    except CheckpointError as exc:
        raise CheckpointError(f"{folder}: {exc}") from exc
    return tensors, head, [*notes, *more_notes]
