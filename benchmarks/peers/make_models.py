"""Creates models for the comparisons: a Hugging Face folder (bf16) and a GGUF file (float32) of the same weights.

    python -m peers.make_models NAME FOLDER [--from FILE.gguf]

Runs in OpenVINO's environment (torch, safetensors, gguf). Weights are random: normally distributed with standard
deviation 0.02, from a fixed seed; norms are 1. With --from, weights are dequantised from a GGUF file. For "7b", only a
Q4_0 file of random blocks is written, one tensor at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from peers.shapes import GGUF_NAMES, SHAPES, Shape, layer_rows

SEED = 20261123
_GLOBAL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""GGUF names of the tensors that do not belong to a layer."""


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the Hugging Face name (without ".weight") and the shape of every tensor of a model."""
    yield "model.embed_tokens", (shape.vocab_size, shape.hidden_size)
    for layer in range(shape.num_hidden_layers):
        start = f"model.layers.{layer}"
        yield f"{start}.input_layernorm", (shape.hidden_size,)
        yield f"{start}.post_attention_layernorm", (shape.hidden_size,)
        for name, size in layer_rows(shape).items():
            yield f"{start}.{name}", size
    yield "model.norm", (shape.hidden_size,)
    if not shape.tie_word_embeddings:
        yield "lm_head", (shape.vocab_size, shape.hidden_size)


def gguf_name(name: str) -> str:
    """Returns the GGUF name of a tensor."""
    if name in _GLOBAL_NAMES:
        return f"{_GLOBAL_NAMES[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def permute_rows(weight: NDArray[np.generic], heads: int, inverse: bool = False) -> NDArray[np.generic]:
    """Reorders the rows of q or k from half-split rotary pairs (Hugging Face) to interleaved pairs (GGUF), or back."""
    order = np.arange(len(weight)).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return weight[np.argsort(order) if inverse else order]


def heads_of(name: str, shape: Shape) -> int:
    """Returns the number of heads of a q or k matrix; 0 for any other tensor."""
    heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
    return heads.get(name.rsplit(".", 1)[-1], 0)


def random_weights(shape: Shape) -> dict[str, torch.Tensor]:
    """Returns random float32 weights from the fixed seed."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: torch.ones(size) if len(size) == 1 else torch.empty(size).normal_(0, 0.02, generator=generator)
        for name, size in tensor_shapes(shape)
    }


def read_weights(shape: Shape, source: Path) -> dict[str, torch.Tensor]:
    """Reads the weights of a GGUF file as float32, with rows in Hugging Face's order."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    weights = {}
    for name, size in tensor_shapes(shape):
        tensor = tensors[gguf_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(size)
        heads = heads_of(name, shape)
        weights[name] = torch.from_numpy(np.array(permute_rows(values, heads, inverse=True) if heads else values))
    return weights


def write_folder(shape: Shape, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes a Hugging Face folder in bf16, with a tokenizer (t0, t1, ...) because some exporters need one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.weight": weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fixed = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**fixed, **asdict(shape)}, indent=1), encoding="utf-8")
    _write_tokenizer(shape.vocab_size, folder)


def _write_tokenizer(vocab_size: int, folder: Path) -> None:
    vocabulary = {f"t{number}": number for number in range(vocab_size)}
    unused = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}
    tokenizer = {"version": "1.0", **dict.fromkeys(unused), "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t1", "eos_token": "t2", "unk_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def new_writer(shape: Shape, path: Path, file_type: int) -> gguf.GGUFWriter:
    """Returns a GGUF writer with the metadata of the shape and no tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("none")
    return writer


def write_gguf(shape: Shape, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a GGUF file of float32 tensors, with rows in GGUF's order."""
    writer = new_writer(shape, path, gguf.LlamaFileType.ALL_F32)
    for name, weight in weights.items():
        heads = heads_of(name, shape)
        values = weight.numpy()
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(permute_rows(values, heads) if heads else values))
    _close(writer)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_random_q4_0(shape: Shape, path: Path) -> None:
    """Writes a GGUF file of random Q4_0 blocks with a standard deviation of about 0.02, one tensor at a time."""
    writer = new_writer(shape, path, gguf.LlamaFileType.MOSTLY_Q4_0)
    types = gguf.GGMLQuantizationType
    sizes: list[tuple[int, ...]] = []
    for name, size in tensor_shapes(shape):
        sizes.append(size)
        is_matrix = len(size) == 2
        stored_shape = (size[0], size[1] // 32 * 18) if is_matrix else size
        dtype = np.dtype(np.uint8) if is_matrix else np.dtype(np.float32)
        bytes_ = int(np.prod(stored_shape)) * dtype.itemsize
        writer.add_tensor_info(gguf_name(name), stored_shape, dtype, bytes_, types.Q4_0 if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(SEED)
    for size in sizes:
        writer.write_tensor_data(_random_blocks(random, size) if len(size) == 2 else np.ones(size, np.float32))
    writer.close()


def _random_blocks(random: np.random.Generator, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Returns random Q4_0 blocks of a matrix as rows of bytes."""
    blocks = np.empty((size[0], size[1] // 32, 18), np.uint8)
    scales = random.uniform(0.003, 0.0055, blocks.shape[:2]).astype(np.float16)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    blocks[..., 2:] = np.frombuffer(random.bytes(blocks[..., 2:].size), np.uint8).reshape(blocks[..., 2:].shape)
    return blocks.reshape(size[0], -1)


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Writes to a temporary name and renames the file, so that an interrupted run leaves no incomplete model."""
    unfinished = path.with_name(f"{path.name}.part")
    write(unfinished)
    unfinished.rename(path)


def main() -> None:
    """Creates one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SHAPES, help="Shape of the model.")
    parser.add_argument("folder", type=Path, help="Folder for the model.")
    parser.add_argument("--from", dest="source", type=Path, help="GGUF file whose weights to use.")
    arguments = parser.parse_args()
    shape, folder = SHAPES[arguments.name], arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.name == "7b":
        write_atomically(folder / "q4_0.gguf", lambda path: write_random_q4_0(shape, path))
        return
    weights = read_weights(shape, arguments.source) if arguments.source else random_weights(shape)
    write_atomically(folder / "f32.gguf", lambda path: write_gguf(shape, weights, path))
    write_folder(shape, weights, folder / "hf")


if __name__ == "__main__":
    main()
