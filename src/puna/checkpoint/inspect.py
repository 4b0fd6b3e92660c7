"""What a checkpoint is, before loading it: the content of `puna inspect`.

A sound checkpoint gives a full report; of a broken one it says what is wrong and what could still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from puna.checkpoint.gguf_config import KNOWN_KEYS, read_gguf_config
from puna.checkpoint.huggingface import WEIGHT_FILES, find_weight_files, read_tensors
from puna.checkpoint.loading import Checkpoint, find_model, open_checkpoint
from puna.checkpoint.meta import is_meta_folder
from puna.checkpoint.names import is_ignored
from puna.checkpoint.weight import RowSource
from puna.config import GenerationConfig, LlamaConfig
from puna.errors import MissingExtraError, ModelNotFoundError, PunaError
from puna.formats.gguf import GgufFile, open_gguf
from puna.formats.grouped import GroupedMatrix

T = TypeVar("T")

_CACHE_TOKENS = 1000

_HARMLESS = frozenset(
    {"architectures", "transformers_version", "_name_or_path", "use_default_system_prompt", "attn_implementation",
     "_attn_implementation", "_attn_implementation_autoset", "pruned_heads", "chunk_size_feed_forward",
     "is_llama_config", "quantization_config", "rope_interleaved", "max_length", "max_sequence_length",
     "license", "author"}
)  # fmt: skip
"""Keys of `config.json` beside `LlamaConfig`'s fields that change nothing a LLaMA computes, or are read elsewhere."""


@dataclass
class Report:
    """What `inspect_checkpoint` found. None or empty: it could not be read, and `errors` says why.

    Attributes:
        kind: "hf", "gguf" or "meta"; None where the path holds no model puna knows.
        container: such as "GGUF v3" or "safetensors".
        files: name and bytes of each weight file.
        dtypes: for each format the number of tensors, of parameters and of bytes.
        architecture: the sizes of `LlamaConfig`, by its field names.
        rope: `rope_parameters` of the configuration.
        vocabulary: rows of the embedding, and tokens the tokenizer knows.
        special_tokens: ids, and text where the tokenizer tells it.
        memory: bytes: the weights as stored and as float32 (what PyTorch runs by default), and the cache of 1,000
            tokens as float32 and bfloat16.
        warnings: what runs but may surprise. `errors`: what keeps the model from loading.
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
    chat_template: bool | None = None
    memory: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def inspect_checkpoint(path: str | Path) -> Report:
    """Reports on the model at `path`: headers and tokenizer are read, weights are not.

    Raises:
        ModelNotFoundError: there is nothing at `path`. Everything else that is wrong stands in the report.
    """
    report = Report(str(path))
    if not Path(path).exists():
        raise ModelNotFoundError(f"{path}: no such file or folder")
    place = _attempt(report, lambda: find_model(Path(path)))
    if place is None:
        return report
    checkpoint = _attempt(report, lambda: open_checkpoint(place))
    if place.is_file():
        config, generation, tensors = _gguf(report, place)
    elif checkpoint is not None and checkpoint.kind == "meta":
        config, generation, tensors = _meta(report, checkpoint)
    elif is_meta_folder(place) and not (place / "config.json").exists():
        report.kind, report.container = "meta", "torch"
        return report
    else:
        config, generation, tensors = _folder(report, place)
        parts = (part for weight in checkpoint.tensors.values() for part in weight.parts) if checkpoint else ()
        packed = next((part for part in parts if isinstance(part, GroupedMatrix)), None)
        if checkpoint is not None and packed is not None:
            config, tensors = checkpoint.config, checkpoint.tensors
            report.container = f"{report.container}, {packed.packing.name}"
    _weigh(report, tensors)
    if checkpoint is not None:
        report.head = checkpoint.head
        if checkpoint.head != "lm":
            report.warnings.append(f"no language model head (head: {checkpoint.head}); it cannot generate text")
    if config is not None:
        _describe(report, config, tensors)
        _check_ids(report, config, generation)
    _read_tokenizer(report, place if checkpoint is None else checkpoint.tokenizer)
    return report


def _attempt(report: Report, step: Callable[[], T]) -> T | None:
    """The step's result; where it fails, None, and its message is in the report once."""
    try:
        return step()
    except PunaError as exc:
        if str(exc) not in report.errors:
            report.errors.append(str(exc))
        return None


_Found = tuple[LlamaConfig | None, GenerationConfig | None, Mapping[str, RowSource]]


def _gguf(report: Report, path: Path) -> _Found:
    report.kind, report.container = "gguf", "GGUF"
    _list_files(report, (path,))
    file = _attempt(report, lambda: open_gguf(path))
    if file is None:
        return None, None, {}
    report.container = f"GGUF v{file.version}"
    configs = _attempt(report, lambda: read_gguf_config(file))
    _check_gguf_keys(report, file)
    return (*(configs or (None, None)), file.tensors)


def _meta(report: Report, checkpoint: Checkpoint) -> _Found:
    report.kind, report.container = "meta", "torch"
    _list_files(report, checkpoint.files)
    return checkpoint.config, checkpoint.generation_config, checkpoint.tensors


def _check_gguf_keys(report: Report, file: GgufFile) -> None:
    ours = [key for key in file.metadata if key.startswith("llama.") and not key.startswith("llama.rope.")]
    unknown = sorted(set(ours) - KNOWN_KEYS)
    if unknown:
        report.warnings.append(f"metadata keys puna does not know: {', '.join(unknown)}")
    embedding, said = file.tensors.get("token_embd.weight"), file.metadata.get("llama.vocab_size")
    if embedding is not None and said is not None and said != embedding.shape[0]:
        report.warnings.append(
            f"llama.vocab_size says {said}; the embedding has {embedding.shape[0]} rows, which counts"
        )


def _folder(report: Report, folder: Path) -> _Found:
    report.kind = "hf"
    config = _attempt(report, lambda: LlamaConfig.from_pretrained(folder))
    generation = None
    if (folder / "generation_config.json").exists():
        generation = _attempt(report, lambda: GenerationConfig.from_pretrained(folder))
    else:
        report.warnings.append("no generation_config.json; text ends at the eos_token_id of config.json alone")
    files = _attempt(report, lambda: find_weight_files(folder))
    tensors: Mapping[str, RowSource] = {}
    if files is not None:
        report.container = "safetensors" if "safetensors" in (files.index or files.paths[0]).name else "torch"
        _list_files(report, files.paths)
        tensors = _attempt(report, lambda: read_tensors(files)) or {}
    unused = [name for name in WEIGHT_FILES[1:] if report.container == "safetensors" and (folder / name).exists()]
    if unused:
        report.warnings.append(f"{', '.join(unused)} is not read; the safetensors files are")
    if config is not None:
        unknown = sorted(config.extra.keys() - _HARMLESS)
        if unknown:
            report.warnings.append(f"keys of config.json puna does not know: {', '.join(unknown)}")
    return config, generation, tensors


def _list_files(report: Report, paths: tuple[Path, ...]) -> None:
    report.files = [{"name": path.name, "bytes": path.stat().st_size} for path in paths]
    report.bytes = sum(file["bytes"] for file in report.files)


def _weigh(report: Report, tensors: Mapping[str, RowSource]) -> None:
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
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * _CACHE_TOKENS
    report.memory = {
        "weights": sum(line["bytes"] for line in report.dtypes.values()),
        "weights_as_float32": 4 * report.parameters,
        "cache_per_1000_tokens_float32": 4 * cached,
        "cache_per_1000_tokens_bfloat16": 2 * cached,
    }
    stored = {tensor.format.torch for tensor in tensors.values() if len(tensor.shape) == 2}
    if config.dtype is not None and stored and config.dtype not in stored and None not in stored:
        kinds = ", ".join(sorted(str(kind) for kind in stored))
        report.warnings.append(
            f"the configuration says {config.dtype}, the weights are {kinds}; converting may lose range"
        )


def _check_ids(report: Report, config: LlamaConfig, generation: GenerationConfig | None) -> None:
    """Special tokens: an id beyond the embedding's rows cannot be fed to the model."""
    eos = config.eos_token_id if generation is None or generation.eos_token_id is None else generation.eos_token_id
    report.special_tokens = {"bos": {"id": config.bos_token_id}, "eos": {"id": eos}, "pad": {"id": config.pad_token_id}}
    for name, entry in report.special_tokens.items():
        ids = entry["id"] if isinstance(entry["id"], list) else [entry["id"]]
        beyond = [id for id in ids if id is not None and id >= config.vocab_size]
        if beyond:
            report.warnings.append(f"{name} token id {beyond[0]} is beyond the vocabulary's {config.vocab_size} rows")
    if eos is None:
        report.warnings.append("no eos token id; text ends only at its length limit")


def _read_tokenizer(report: Report, place: Path) -> None:
    from puna.tokenizer import load_tokenizer  # late: it costs more than everything else here

    try:
        tokenizer = load_tokenizer(place)
    except (PunaError, MissingExtraError) as exc:
        report.warnings.append(f"no usable tokenizer: {exc}")
        return
    report.chat_template = tokenizer.chat_template is not None
    if not report.chat_template:
        report.warnings.append("no chat template; chatting needs one to be given")
    named = {
        "bos": (tokenizer.bos_token_id, tokenizer.bos_token),
        "eos": (tokenizer.eos_token_id, tokenizer.eos_token),
        "pad": (tokenizer.pad_token_id, tokenizer.pad_token),
    }
    for name, entry in report.special_tokens.items():
        _compare_id(report, name, entry, *named[name])
    rows, tokens = report.vocabulary.get("rows"), len(tokenizer)
    report.vocabulary["tokens"] = tokens
    if rows is not None and tokens > rows:
        report.warnings.append(
            f"the tokenizer has {tokens} tokens, the embedding {rows} rows; ids beyond them will fail"
        )


def _compare_id(report: Report, name: str, entry: dict[str, Any], theirs: int | None, text: str | None) -> None:
    """Notes the tokenizer's text of a special token, and warns where it is that of another id."""
    entry["text"] = text
    ids = entry["id"] if isinstance(entry["id"], list) else [entry["id"]]
    if theirs is not None and entry["id"] is not None and theirs not in ids:
        report.warnings.append(
            f"{name} token id {entry['id']} in the configuration, but {theirs} ({text!r}) in the tokenizer"
        )
