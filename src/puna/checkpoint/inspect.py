"""Describes a checkpoint without loading its weights: the content of `puna inspect`.

The report on a damaged checkpoint lists the errors and everything that could still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from puna.checkpoint.gguf_config import read_gguf_config, unknown_keys
from puna.checkpoint.huggingface import find_weight_files, read_tensors
from puna.checkpoint.loading import Checkpoint, find_model, open_checkpoint
from puna.checkpoint.meta import is_meta_folder
from puna.checkpoint.names import is_ignored
from puna.checkpoint.weight import RowSource
from puna.config import GenerationConfig, GenerationDefaults, LlamaConfig, generation_notes
from puna.errors import ChatTemplateError, CheckpointError, MissingExtraError, ModelNotFoundError, PunaError
from puna.files import has_file, reading_errors
from puna.formats.gguf import GgufFile, open_gguf
from puna.formats.grouped import GroupedMatrix
from puna.formats.scaled import ScaledMatrix
from puna.formats.torch_zip import open_torch_zip

T = TypeVar("T")

_CACHE_TOKENS = 1000

_HARMLESS = frozenset(
    {"architectures", "transformers_version", "_name_or_path", "use_default_system_prompt", "attn_implementation",
     "_attn_implementation", "_attn_implementation_autoset", "pruned_heads", "chunk_size_feed_forward",
     "is_llama_config", "quantization_config", "compression_config", "quantization", "rope_interleaved", "max_length",
     "max_sequence_length", "license", "author"}
)  # fmt: skip
"""Keys of `config.json`, besides `LlamaConfig`'s fields, that do not affect computation or are read elsewhere."""


@dataclass
class Report:
    """The result of `inspect_checkpoint`. Fields that could not be read are None or empty.

    Attributes:
        kind: "hf", "gguf" or "meta"; None if the path contains no model that puna can read.
        container: the file format, such as "GGUF v3" or "safetensors".
        files, bytes: name and size of each weight file, and their total size.
        dtypes: for each format, the number of tensors, of parameters and of bytes.
        architecture: the sizes of `LlamaConfig`, by its field names.
        rope: `rope_parameters` of the configuration.
        vocabulary: "rows" of the embedding and "tokens" of the tokenizer.
        special_tokens: for bos, eos and pad, the "id" and, if the tokenizer has it, the "text".
        generation: the defaults of `LLM.generate`, as in `puna.config.GenerationDefaults`.
        memory: bytes of the weights as stored and as float32, and of the cache of 1,000 tokens.
        notes: settings and tensors that are ignored because they change nothing.
        warnings, errors: problems despite which the model loads, and problems that prevent loading.
    """

    path: str
    kind: str | None = None
    container: str | None = None
    files: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    parameters: int = 0
    dtypes: dict[str, dict[str, int]] = field(default_factory=dict)
    head: str | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    rope: dict[str, Any] = field(default_factory=dict)
    context: int | None = None
    vocabulary: dict[str, int | None] = field(default_factory=dict)
    special_tokens: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    chat_template: bool | None = None
    memory: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, for JSON."""
        return asdict(self)


@reading_errors(CheckpointError)
def inspect_checkpoint(path: str | Path) -> Report:
    """Returns a report on the model at `path`; reads only headers, configurations and the tokenizer.

    Raises:
        ModelNotFoundError: `path` does not exist. All other errors are in the report.
    """
    report = Report(str(path))
    exists = _attempt(report, lambda: _exists(Path(path)))
    if exists is None:
        return report
    if not exists:
        raise ModelNotFoundError(f"{path}: no such file or folder")
    model = _attempt(report, lambda: find_model(Path(path)))
    if model is None:
        return report
    checkpoint = _attempt(report, lambda: open_checkpoint(model))
    if model.is_file():
        config, generation, tensors = _gguf(report, model)
    elif checkpoint is not None and checkpoint.kind == "meta":
        config, generation, tensors = _meta(report, checkpoint)
    elif is_meta_folder(model) and not has_file(model / "config.json", CheckpointError):
        config, generation, tensors = None, None, _damaged_meta(report, model)
    else:
        config, generation, tensors = _folder(report, model)
        parts = (part for weight in checkpoint.tensors.values() for part in weight.parts) if checkpoint else ()
        packed = next((part for part in parts if isinstance(part, GroupedMatrix | ScaledMatrix)), None)
        if checkpoint is not None and packed is not None:
            config, tensors = checkpoint.config, checkpoint.tensors
            report.container = f"{report.container}, {packed.method}"
    report.notes += checkpoint.notes if checkpoint is not None else config.notes if config is not None else ()
    _count_weights(report, tensors)
    if checkpoint is not None:
        report.head = checkpoint.head
        if checkpoint.head != "lm":
            report.warnings.append(f"no language model head (head: {checkpoint.head}); the model cannot generate text")
    if config is not None:
        _describe(report, config, tensors)
        _check_ids(report, config, generation)
        _attempt(report, lambda: _describe_generation(report, generation or GenerationConfig.from_model_config(config)))
    _read_tokenizer(report, model if checkpoint is None else checkpoint.tokenizer)
    return report


@reading_errors(CheckpointError)
def _exists(path: Path) -> bool:
    return path.exists()


def _attempt(report: Report, step: Callable[[], T]) -> T | None:
    """Returns the step's result, or None if it raises a PunaError; adds the message to the report once."""
    try:
        return step()
    except PunaError as exc:
        if str(exc) not in report.errors:
            report.errors.append(str(exc))
        return None


_Content = tuple[LlamaConfig | None, GenerationConfig | None, Mapping[str, RowSource]]


def _gguf(report: Report, path: Path) -> _Content:
    report.kind, report.container = "gguf", "GGUF"
    file = _attempt(report, lambda: open_gguf(path))
    _list_files(report, (path,) if file is None else file.parts)
    if file is None:
        return None, None, {}
    report.container = f"GGUF v{file.version}" + (f", {len(file.parts)} parts" if len(file.parts) > 1 else "")
    configs = _attempt(report, lambda: read_gguf_config(file))
    _check_gguf_keys(report, file)
    return (*(configs or (None, None)), file.tensors)


def _meta(report: Report, checkpoint: Checkpoint) -> _Content:
    report.kind, report.container = "meta", "torch"
    _list_files(report, checkpoint.files)
    return checkpoint.config, checkpoint.generation_config, checkpoint.tensors


def _damaged_meta(report: Report, folder: Path) -> dict[str, RowSource]:
    """Adds the files of a folder in Meta's layout to the report; returns the tensors of those that can be read."""
    report.kind, report.container = "meta", "torch"
    paths = tuple(sorted(folder.glob("consolidated.*.pth")))
    _list_files(report, paths)
    tensors: dict[str, RowSource] = {}
    for path in paths:
        shard = _attempt(report, lambda path=path: open_torch_zip(path).tensors) or {}  # type: ignore[misc]
        tensors |= {f"{path.name} {name}": tensor for name, tensor in shard.items()}
    return tensors


def _check_gguf_keys(report: Report, file: GgufFile) -> None:
    if unknown := sorted(unknown_keys(file.metadata)):
        report.warnings.append(f"unknown metadata keys, ignored: {', '.join(unknown)}")
    embedding, size = file.tensors.get("token_embd.weight"), file.metadata.get("llama.vocab_size")
    if embedding is not None and size is not None and size != embedding.shape[0]:
        report.warnings.append(
            f"llama.vocab_size is {size}, but the embedding has {embedding.shape[0]} rows; puna uses the number of rows"
        )


def _folder(report: Report, folder: Path) -> _Content:
    report.kind = "hf"
    config = _attempt(report, lambda: LlamaConfig.from_checkpoint(folder))
    generation = None
    file = folder / "generation_config.json"
    if _attempt(report, lambda: has_file(file, CheckpointError)) is not False:
        generation = _attempt(report, lambda: GenerationConfig.from_pretrained(folder))
    else:
        report.warnings.append("no generation_config.json; generation ends only at the eos_token_id of config.json")
    files = _attempt(report, lambda: find_weight_files(folder))
    tensors: Mapping[str, RowSource] = {}
    if files is not None:
        report.container = "safetensors" if "safetensors" in (files.index or files.paths[0]).name else "torch"
        _list_files(report, files.paths)
        tensors = (_attempt(report, lambda: read_tensors(files)) or ({},))[0]
    unused = sorted(path.name for path in folder.glob("pytorch_model*.bin") if report.container == "safetensors")
    if unused:
        report.warnings.append(f"{', '.join(unused[:3])} ignored; the safetensors files are used instead")
    if config is not None:
        unknown = sorted(config.extra.keys() - _HARMLESS)
        if unknown:
            report.warnings.append(f"unknown keys of config.json, ignored: {', '.join(unknown)}")
    return config, generation, tensors


def _list_files(report: Report, paths: tuple[Path, ...]) -> None:
    report.files = [{"name": path.name, "bytes": path.stat().st_size} for path in paths if path.is_file()]
    report.bytes = sum(file["bytes"] for file in report.files)


def _count_weights(report: Report, tensors: Mapping[str, RowSource]) -> None:
    for tensor in tensors.values():
        if is_ignored(tensor.name):
            continue
        count = prod(tensor.shape)
        line = report.dtypes.setdefault(tensor.format.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        line["tensors"] += 1
        line["parameters"] += count
        line["bytes"] += tensor.format.size(tensor.shape)
        report.parameters += count


def _describe(report: Report, config: LlamaConfig, tensors: Mapping[str, RowSource]) -> None:
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "mlp_bias", "tie_word_embeddings",
    )  # fmt: skip
    report.architecture = {name: getattr(config, name) for name in names}
    report.rope = config.rope_parameters
    report.context = config.context_length
    report.vocabulary = {"rows": config.vocab_size, "tokens": None}
    cache_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * _CACHE_TOKENS
    report.memory = {
        "weights": sum(line["bytes"] for line in report.dtypes.values()),
        "weights_as_float32": 4 * report.parameters,
        "cache_per_1000_tokens_float32": 4 * cache_values,
        "cache_per_1000_tokens_bfloat16": 2 * cache_values,
    }
    dtypes = {tensor.format.torch for tensor in tensors.values() if len(tensor.shape) == 2}
    if config.dtype_name is not None and dtypes and config.dtype_name not in dtypes and None not in dtypes:
        kinds = ", ".join(sorted(str(kind) for kind in dtypes))
        report.warnings.append(
            f"the configuration's dtype is {config.dtype_name}, but the weights are {kinds}; casting them may overflow"
        )


def _check_ids(report: Report, config: LlamaConfig, generation: GenerationConfig | None) -> None:
    """Adds the special tokens to the report; warns of ids beyond the embedding's rows, which the model cannot read."""
    eos = config.eos_token_id if generation is None or generation.eos_token_id is None else generation.eos_token_id
    report.special_tokens = {"bos": {"id": config.bos_token_id}, "eos": {"id": eos}, "pad": {"id": config.pad_token_id}}
    for name, entry in report.special_tokens.items():
        ids = entry["id"] if isinstance(entry["id"], list) else [entry["id"]]
        beyond = [id for id in ids if id is not None and id >= config.vocab_size]
        if beyond:
            report.warnings.append(f"{name} token id {beyond[0]} is beyond the vocabulary's {config.vocab_size} rows")
    if eos is None:
        report.warnings.append("no eos token id; generation ends only at the length limit")


def _describe_generation(report: Report, generation: GenerationConfig) -> None:
    report.generation = asdict(GenerationDefaults.of(generation))
    report.warnings += generation_notes(generation)
    if not generation.do_sample and generation.temperature not in (0.0, 1.0):
        report.notes.append(
            f"the generation configuration has temperature {generation.temperature}, but not do_sample; as in "
            "transformers, the most likely token is chosen"
        )


def _read_tokenizer(report: Report, path: Path) -> None:
    from puna.tokenizer import load_tokenizer  # here, since this import takes longer than the rest of the report

    try:
        tokenizer = load_tokenizer(path)
    except (PunaError, MissingExtraError) as exc:
        report.warnings.append(f"no usable tokenizer: {exc}")
        return
    report.notes += tokenizer.notes
    report.chat_template = tokenizer.chat_template is not None
    if not report.chat_template:
        try:
            tokenizer.get_chat_template()
            report.notes.append("the files have no chat template; chats use the built-in one of Llama 2 or 3")
        except ChatTemplateError:
            report.warnings.append("no chat template; a chat needs one")
    tokens = {
        "bos": (tokenizer.bos_token_id, tokenizer.bos_token),
        "eos": (tokenizer.eos_token_id, tokenizer.eos_token),
        "pad": (tokenizer.pad_token_id, tokenizer.pad_token),
    }
    for name, entry in report.special_tokens.items():
        _compare_id(report, name, entry, *tokens[name])
    rows, count = report.vocabulary.get("rows"), len(tokenizer)
    report.vocabulary["tokens"] = count
    if rows is not None and count > rows:
        report.warnings.append(
            f"the tokenizer has {count} tokens, but the embedding has {rows} rows; ids beyond the rows will fail"
        )


def _compare_id(report: Report, name: str, entry: dict[str, Any], id: int | None, text: str | None) -> None:
    """Adds the tokenizer's text of a special token to the report; warns if the configuration has another id for it."""
    entry["text"] = text
    ids = entry["id"] if isinstance(entry["id"], list) else [entry["id"]]
    if id is not None and entry["id"] is not None and id not in ids:
        report.warnings.append(
            f"the {name} token id is {entry['id']} in the configuration, but {id} ({text!r}) in the tokenizer"
        )
