"""Small random models, written as GGUF by the package gguf and as Hugging Face folders by `safetensors` or torch.

Tensors are NumPy arrays. The package ml_dtypes provides bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
from gguf import quants

from puna.checkpoint.names import expected_tensors
from puna.config import LlamaConfig
from tests.helpers.torch_files import Tensors, save_torch


def tiny_config(**changes: Any) -> LlamaConfig:
    """Returns a small configuration with some fields changed."""
    fields: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    return LlamaConfig(**(fields | changes))


def tiny_tensors(config: LlamaConfig, head: Any = "lm", seed: int = 0) -> Tensors:
    """Returns random float32 tensors for a configuration, under Hugging Face's names."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in expected_tensors(config, head)}


def write_folder(folder: Path, config: LlamaConfig, tensors: Tensors, bin: bool = False, shards: int = 1) -> Path:
    """Writes a folder in Hugging Face's layout, with weights in torch files if `bin`; returns its path."""
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    name = "pytorch_model.bin" if bin else "model.safetensors"
    stem, ending = name.split(".")
    names = [name] if shards == 1 else [f"{stem}-{i + 1:05}-of-{shards:05}.{ending}" for i in range(shards)]
    weight_map = {}
    for index, file in enumerate(names):
        part = {key: np.ascontiguousarray(tensors[key]) for key in list(tensors)[index::shards]}
        weight_map |= dict.fromkeys(part, file)
        if bin:
            save_torch(part, folder / file)
        else:
            safetensors.numpy.save_file(part, folder / file, {"format": "pt"})
    if shards > 1:
        write_index(folder / f"{name}.index.json", weight_map)
    return folder


def write_index(path: Path, weight_map: dict[str, str]) -> None:
    import json

    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def llama_cpp_permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Permutes the rows of q or k as llama.cpp's converter does (`LlamaModel.permute` in convert_hf_to_gguf.py)."""
    split = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return split.swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path: Path,
    config: LlamaConfig,
    tensors: Tensors,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    packed: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
) -> Path:
    """Writes a file as llama.cpp's converter does.

    `keys` adds metadata, or removes a key with None; `extra` adds tensors with GGUF's names; `packed` contains the
    bytes of tensors that the package gguf cannot quantise.
    """
    writer = gguf.GGUFWriter(path, "llama")
    metadata = {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
        **(keys or {}),
    }
    for key, value in metadata.items():
        add_key(writer, key, value)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in tensors.items():
        array = tensor.astype(np.float32)
        if ".q_proj." in name:
            array = llama_cpp_permute(array, config.num_attention_heads)
        if ".k_proj." in name:
            array = llama_cpp_permute(array, config.num_key_value_heads)
        target = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if name in (packed or {}):
            raw, packed_kind = packed[name]
            writer.add_tensor(target, raw, raw_dtype=packed_kind)
        elif array.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(target, quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(array))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.alignment":
        writer.add_custom_alignment(value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
