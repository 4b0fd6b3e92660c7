"""The kinds of files that the fuzzer mutates; each kind writes a mutated model, and reads the model as a user would."""

# ruff: noqa: E501  # tables, one entry a line

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import puna
from puna.checkpoint import open_checkpoint
from puna.checkpoint.inspect import inspect_checkpoint
from puna.formats.gguf import open_gguf
from puna.tokenizer import StreamDecoder
from puna.tokenizer.chat import render_chat
from tests.checkpoint.fuzz_worker import BYTE_MUTATIONS, MUTATIONS
from tests.fuzz import adapters
from tests.fuzz.components import component, template
from tests.fuzz.json_mutations import mutate

TEXTS = ["", "Hello llama", "  the  llama\n\0\t<s>x</s>", "é日本語🦙" * 5, "a" * 40, "▁▁ <0x41>"]


def read_model(rng: random.Random, path: Path) -> None:
    """Reads all tensors of a model, runs it or converts it; sometimes also inspects it."""
    action = rng.randrange(8)
    if action == 0:
        inspect_checkpoint(path).to_dict()
    checkpoint = open_checkpoint(path)
    if action == 1:
        llm = puna.LLM(path, backend="native", threads=1)
        llm.generate([1, 2, 3], max_tokens=2)
        return
    if action == 2:
        puna.convert(path, path.parent / "converted", to="hf")
        return
    for weight in checkpoint.tensors.values():
        assert weight.to_float32().shape == weight.shape
        assert weight.rows().size == weight.format.size(weight.shape)
    _ = checkpoint.generation


def read_tokenizer(rng: random.Random, path: Path) -> None:
    """Loads a tokenizer with a random class; encodes and decodes texts, and sometimes saves the tokenizer."""
    cls = rng.choice(
        [puna.load_tokenizer] * 4 + [puna.LlamaTokenizer.from_pretrained, puna.LlamaTokenizerFast.from_pretrained]
    )
    tokenizer: Any = cls(path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        tokenizer.decode(ids, skip_special_tokens=True)
        stream = StreamDecoder(tokenizer)
        for index in ids:
            stream.push(index)
        stream.finish()
        tokenizer.convert_tokens_to_string(tokenizer.tokenize(text))
    tokenizer(TEXTS[1:3], TEXTS[1:3], padding=tokenizer.pad_token is not None, truncation=True, max_length=8)
    _ = tokenizer.special_tokens_map, tokenizer.get_vocab(), repr(tokenizer), len(tokenizer)
    if rng.random() < 0.3:
        tokenizer.save_pretrained(path.parent / "saved")
    if rng.random() < 0.1 and tokenizer.chat_template is not None:
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        share: the number of cases of this kind, relative to other kinds.
        write: writes a mutated model or tokenizer into an empty folder and returns its path.
        read: reads the model or tokenizer.
    """

    share: int
    write: Callable[[random.Random, Path, Path], Path]
    read: Callable[[random.Random, Path], None]


def _tensors(kind: str, name: str) -> Callable[[random.Random, Path, Path], Path]:
    """Returns a function that writes a mutated file of tensors."""

    def write(rng: random.Random, seeds: Path, work: Path) -> Path:
        files = [file.read_bytes() for file in sorted((seeds / "tensors").glob(f"{kind}-*"))]
        if kind == "gguf":
            files += [(seeds / "golden.gguf").read_bytes()[:200_000]] * 2
        data = rng.choice(MUTATIONS[kind])(rng, rng.choice(files), files)
        (work / name).write_bytes(data)
        if kind == "gguf":
            return work / name
        shutil.copy(seeds / "tensors/config.json", work)
        return work

    return write


def _read_gguf(rng: random.Random, path: Path) -> None:
    if rng.random() < 0.4:
        read_tokenizer(rng, path)
    dict(open_gguf(path).metadata)
    read_model(rng, path)


def _shard(rng: random.Random, seeds: Path, work: Path) -> Path:
    """Writes a folder in Meta's layout with a mutated weight file."""
    for file in (seeds / "meta").iterdir():
        (work / file.name).write_bytes(file.read_bytes())
    path = work / "consolidated.00.pth"
    data = path.read_bytes()
    path.write_bytes(rng.choice(MUTATIONS["bin"])(rng, data, [data]))
    return work


CONFIG_KEYS = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "rms_norm_eps", "rope_scaling", "rope_theta", "rope_parameters", "architectures",
    "model_type", "dtype", "torch_dtype", "max_position_embeddings", "hidden_act", "bos_token_id", "eos_token_id", "pad_token_id",
    "quantization_config", "pretraining_tp", "initializer_range", "num_labels", "id2label", "label2id", "use_cache", "auto_map",
    "sliding_window", "num_local_experts", "attention_dropout", "type", "rope_type", "factor", "low_freq_factor", "short_factor",
    "original_max_position_embeddings", "long_factor", "beta_fast", "attention_factor", "mscale", "partial_rotary_factor",
    "temperature", "top_p", "top_k", "do_sample", "max_new_tokens", "max_length", "min_p", "repetition_penalty", "suppress_tokens",
    "stop_strings", "num_beams", "weight_map", "metadata",
    "bits", "group_size", "quant_method", "desc_act", "checkpoint_format", "version", "load_in_4bit", "bnb_4bit_quant_type",
    "config_groups", "format", "ignore", "kv_cache_scheme",
]  # fmt: skip
PARAMS_KEYS = [
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
]
PARAMS_KEYS += ["use_scaled_rope", "max_batch_size", "max_seq_len"]
CONFIG_VALUES: list[Any] = [
    {"type": "linear", "factor": 2.0}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, {"rope_type": "dynamic", "factor": 1e300},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}, {"rope_type": "default"},
    ["LlamaModel"], ["MistralForCausalLM"], "float16", "bfloat16", "float64", "auto", "gelu", "silu", "mistral", 64, 8, 4, 0, -1,
    {"quant_method": "gptq", "bits": 4, "group_size": 32}, {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "type": "int", "symmetric": True}, "targets": ["Linear"]}}},
    "model-00001-of-00002.safetensors", "../x.safetensors", "/dev/zero", "model.safetensors", [1, 2], [2**63], {"a": [2**31]},
]  # fmt: skip


def _json_file(
    folder: str, names: list[str], keys: list[str], values: list[Any]
) -> Callable[[random.Random, Path, Path], Path]:
    """Returns a function that copies a folder of the seeds and mutates one of its JSON files."""

    def write(rng: random.Random, seeds: Path, work: Path) -> Path:
        for file in (seeds / folder).iterdir():
            (work / file.name).write_bytes(file.read_bytes())
        name = rng.choice(names)
        source = seeds / folder / name
        document = json.loads(source.read_text()) if source.exists() else {}
        (work / name).write_bytes(mutate(rng, document, keys, values))
        return work

    return write


TOKENIZER_KEYS = [
    "bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "chat_template",
    "add_bos_token", "add_eos_token", "add_prefix_space", "model_max_length", "padding_side", "truncation_side", "sp_model_kwargs", "legacy",
    "tokenizer_class", "clean_up_tokenization_spaces", "spaces_between_special_tokens", "use_default_system_prompt", "split_special_tokens",
    "content", "lstrip", "rstrip", "single_word", "normalized", "special", "behaviour", "from_slow", "model_input_names", "0", "1", "290", "4294967296",
]  # fmt: skip
TOKENIZER_VALUES: list[Any] = [
    "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "left", "right", 10**30, "<s>", "</s>", "<new>", ["<a>", "<b>"], "the", "a",
    {"content": "<z>", "lstrip": True, "rstrip": True, "normalized": True, "single_word": True, "special": False}, {"content": ""}, {"content": "\ud800"},
    {"model_file": "/dev/zero"}, {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}, [{"name": "default", "template": "{{ 1 }}"}], "{{ messages }}",
    {"290": {"content": "<q>"}}, {"5": {"content": "a"}}, {"291": "x", "999": {"content": "gap"}},
]  # fmt: skip
PIPELINE_KEYS = [
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
    "added_tokens",
    "truncation",
    "padding",
    "vocab",
    "merges",
]


def _pipeline(rng: random.Random, seeds: Path, work: Path) -> Path:
    """Writes a tokenizer whose tokenizer.json has random parts."""
    source = seeds / rng.choice(["bytes", "bytes", "hf"])
    for file in source.glob("*.json"):
        if file.name != "config.json":
            (work / file.name).write_bytes(file.read_bytes())
    document = json.loads((source / "tokenizer.json").read_text())
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        document[rng.choice([*PIPELINE_KEYS[:5], *PIPELINE_KEYS[:5], *PIPELINE_KEYS])] = component(rng)
    values = [component(rng) for _ in range(5)]
    keys = [*PIPELINE_KEYS, *(key for value in values for key in value)]
    text = (
        mutate(rng, document, keys, values)
        if rng.random() < 0.6
        else json.dumps(document).encode("utf-8", "surrogatepass")
    )
    (work / "tokenizer.json").write_bytes(text)
    if rng.random() < 0.5:
        (work / "tokenizer_config.json").unlink(missing_ok=True)
    return work


def _sentencepiece(rng: random.Random, seeds: Path, work: Path) -> Path:
    """Writes a mutated SentencePiece model or tiktoken file."""
    names = ["bpe", "unigram", "nmt", "user", "word", "char", "ranks"]
    files = [(seeds / f"{name}.model").read_bytes() for name in names]
    data = rng.choice(files)
    for _ in range(rng.choice([1, 1, 2])):
        data = rng.choice([*BYTE_MUTATIONS, _message, _message, _message])(rng, data or b"\n", files)
    (work / "tokenizer.model").write_bytes(data)
    if rng.random() < 0.3:
        config = mutate(
            rng, {"tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {}}, TOKENIZER_KEYS, TOKENIZER_VALUES
        )
        (work / "tokenizer_config.json").write_bytes(config)
    return work


def _message(rng: random.Random, data: bytes, files: list[bytes]) -> bytes:
    """Appends a protobuf field: a piece, or a setting of the trainer or normaliser."""
    number = rng.choice([0, 1, 2, 3, 4, 127, 2**31 - 1, 2**32, 2**63, 2**64 - 1])
    text = rng.choice([b"", b"a", b"\xff\xfe", b"x" * 2000, "▁the".encode(), b"<s>", b"\0", b"<0x41>", b"<unk>"])
    piece = _field(1, text) + b"\x15" + rng.randbytes(4) + _field(3, number)
    setting = _field(rng.choice([3, 4, 5, 26, 35, 40, 41, 42, 43]), number)
    return data + rng.choice(
        [
            _field(1, piece),
            _field(1, piece) * 2,
            _field(2, setting),
            _field(2, _field(rng.choice([45, 46, 47, 48, 30, 31]), text)),
            _field(
                3, _field(rng.choice([1, 2]), rng.choice([text, rng.randbytes(40), b"\xff\xff\xff\x7f" + bytes(8)]))
            ),
            _field(3, _field(rng.choice([3, 4, 5]), number)),
            _field(5, _field(2, text)),
            _field(4, _field(1, _field(1, text) + _field(2, text))),
        ]
    )


def _field(field: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(field << 3) + _varint(value)
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _template(rng: random.Random, seeds: Path, work: Path) -> Path:
    text = template(rng)
    if rng.random() < 0.1:
        text = text[: rng.randrange(len(text) + 1)]
    (work / "template.jinja").write_bytes(text.encode("utf-8", "surrogatepass"))
    return work / "template.jinja"


def _read_template(rng: random.Random, path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    render_chat(text, turns, variables={"bos_token": "<s>"}, add_generation_prompt=True)


def _quantised(rng: random.Random, seeds: Path, work: Path) -> Path:
    """Writes a quantised folder with a mutated quantization_config or a mutated weight file."""
    source = rng.choice(sorted((seeds / "quantised").iterdir()))
    for file in source.iterdir():
        (work / file.name).write_bytes(file.read_bytes())
    if rng.random() < 0.5:
        document = json.loads((source / "config.json").read_text())
        settings = {"quantization_config": document["quantization_config"]}
        mutated = json.loads(json.dumps(settings)) if rng.random() < 0.1 else _mutate_settings(rng, settings)
        (work / "config.json").write_text(json.dumps(document | mutated))
    else:
        data = (work / "model.safetensors").read_bytes()
        (work / "model.safetensors").write_bytes(rng.choice(MUTATIONS["safetensors"])(rng, data, [data]))
    return work


def _mutate_settings(rng: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """Returns a mutated JSON object, or an empty one if the mutated text is not a JSON object."""
    try:
        mutated = json.loads(mutate(rng, document, CONFIG_KEYS, CONFIG_VALUES))
    except (ValueError, RecursionError):
        return {}
    return mutated if isinstance(mutated, dict) else {}


def _split(rng: random.Random, seeds: Path, work: Path) -> Path:
    """Writes a split GGUF model, one part of which is mutated or missing."""
    files = sorted((seeds / "split").iterdir())
    contents = [file.read_bytes() for file in files]
    damaged = rng.randrange(len(files))
    for number, (file, data) in enumerate(zip(files, contents, strict=True)):
        if number == damaged:
            data = rng.choice(MUTATIONS["gguf"])(rng, data, contents)
        if number != damaged or rng.random() > 0.03:
            (work / file.name).write_bytes(data)
    return work if rng.random() < 0.5 else work / rng.choice(files).name


KINDS: dict[str, Kind] = {
    "gguf": Kind(18, _tensors("gguf", "model.gguf"), _read_gguf),
    "safetensors": Kind(10, _tensors("safetensors", "model.safetensors"), read_model),
    "bin": Kind(10, _tensors("bin", "pytorch_model.bin"), read_model),
    "pth": Kind(8, _shard, read_model),
    "config": Kind(12, _json_file("model", ["config.json"], CONFIG_KEYS, CONFIG_VALUES), read_model),
    "generation": Kind(4, _json_file("model", ["generation_config.json"], CONFIG_KEYS, CONFIG_VALUES), read_model),
    "index": Kind(5, _json_file("sharded", ["model.safetensors.index.json"], CONFIG_KEYS, CONFIG_VALUES), read_model),
    "params": Kind(
        4, _json_file("meta", ["params.json"], PARAMS_KEYS, [64, 256, 1.3, -1, True, 320, None]), read_model
    ),
    "quantised": Kind(7, _quantised, read_model),
    "split": Kind(4, _split, read_model),
    "adapter": Kind(5, adapters.write, adapters.read),
    "pipeline": Kind(14, _pipeline, read_tokenizer),
    "settings": Kind(
        7,
        _json_file(
            "bytes",
            ["tokenizer_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"],
            TOKENIZER_KEYS,
            TOKENIZER_VALUES,
        ),
        read_tokenizer,
    ),
    "sentencepiece": Kind(8, _sentencepiece, read_tokenizer),
    "template": Kind(3, _template, _read_template),
}
