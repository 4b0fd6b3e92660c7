"""stories260K: a real, trained LLaMA of one megabyte (A. Karpathy's tinyllamas, MIT), rewritten in other layouts.

This module reads the original files. The reference package of each format writes the new files.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


@dataclass
class Stories:
    """The model as llama2.c exports it: q and k rows interleaved, weights float32."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tensors: dict[str, np.ndarray]
    pieces: list[str]
    scores: list[float]


def read_stories(folder: Path) -> Stories:
    """Reads the model and the vocabulary in llama2.c's format."""
    data = (folder / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    values = np.frombuffer(data, "<f4", offset=28)
    kv = dim * kv_heads // heads
    shapes = {
        "embed": (vocab, dim),
        "attention_norm": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv, dim),
        "wv": (layers, kv, dim),
        "wo": (layers, dim, dim),
        "ffn_norm": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm": (dim,),
    }
    tensors, at = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        tensors[name] = values[at : at + size].reshape(shape)
        at += size
    assert values.size - at == context * dim // heads  # two unused rope tables, each half a head wide
    pieces, scores = _read_vocabulary(folder / "tok512.bin", vocab)
    return Stories(dim, hidden, layers, heads, kv_heads, vocab, context, tensors, pieces, scores)


def _read_vocabulary(path: Path, size: int) -> tuple[list[str], list[float]]:
    data, at = path.read_bytes(), 4
    pieces, scores = [], []
    for index in range(size):
        score, length = struct.unpack_from("<fi", data, at)
        text = data[at + 8 : at + 8 + length].decode()
        at += 8 + length
        names = {0: "<unk>", 1: "<s>", 2: "</s>"}
        pieces.append(names.get(index, text.replace(" ", "▁")))
        scores.append(score)
    return pieces, scores


def piece_kind(index: int) -> int:
    """Returns the code of a piece's type in SentencePiece and GGUF: unknown 2, control 3, byte 6, normal 1."""
    return {0: 2, 1: 3, 2: 3}.get(index, 6 if index < 259 else 1)


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders interleaved rotary rows to Hugging Face's half-split order."""
    width = rows.shape[0] // heads
    order = [head * width + pair * 2 + part for head in range(heads) for part in (0, 1) for pair in range(width // 2)]
    return np.ascontiguousarray(rows[order])


def write_hf(stories: Stories, folder: Path) -> None:
    """Writes a Hugging Face folder: model.safetensors, config.json, tokenizer.model."""
    from safetensors.numpy import save_file

    t = stories.tensors
    out = {"model.embed_tokens.weight": t["embed"], "model.norm.weight": t["norm"]}
    for n in range(stories.layers):
        out |= {
            f"model.layers.{n}.input_layernorm.weight": t["attention_norm"][n],
            f"model.layers.{n}.post_attention_layernorm.weight": t["ffn_norm"][n],
            f"model.layers.{n}.self_attn.q_proj.weight": half_split(t["wq"][n], stories.heads),
            f"model.layers.{n}.self_attn.k_proj.weight": half_split(t["wk"][n], stories.kv_heads),
            f"model.layers.{n}.self_attn.v_proj.weight": t["wv"][n],
            f"model.layers.{n}.self_attn.o_proj.weight": t["wo"][n],
            f"model.layers.{n}.mlp.gate_proj.weight": t["w1"][n],
            f"model.layers.{n}.mlp.down_proj.weight": t["w2"][n],
            f"model.layers.{n}.mlp.up_proj.weight": t["w3"][n],
        }
    folder.mkdir()
    save_file({name: np.ascontiguousarray(value) for name, value in out.items()}, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": stories.vocab,
        "hidden_size": stories.dim,
        "intermediate_size": stories.hidden,
        "num_hidden_layers": stories.layers,
        "num_attention_heads": stories.heads,
        "num_key_value_heads": stories.kv_heads,
        "max_position_embeddings": stories.context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **SPECIAL}))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(stories))


def sentencepiece_model(stories: Stories) -> bytes:
    """Returns the bytes of a tokenizer.model with the vocabulary."""
    from sentencepiece import sentencepiece_model_pb2 as pb2

    proto = pb2.ModelProto()
    for index, (piece, score) in enumerate(zip(stories.pieces, stories.scores, strict=True)):
        proto.pieces.add(piece=piece, score=score, type=piece_kind(index))
    proto.trainer_spec.model_type = pb2.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = stories.vocab
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.add_dummy_prefix = True
    return proto.SerializeToString()


def write_gguf(stories: Stories, path: Path) -> None:
    """Writes a GGUF file as llama.cpp's converter would write it: q and k stay interleaved."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(stories.context)
    writer.add_embedding_length(stories.dim)
    writer.add_block_count(stories.layers)
    writer.add_feed_forward_length(stories.hidden)
    writer.add_head_count(stories.heads)
    writer.add_head_count_kv(stories.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(stories.dim // stories.heads)
    writer.add_vocab_size(stories.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(stories.pieces)
    writer.add_token_scores(stories.scores)
    writer.add_token_types([piece_kind(index) for index in range(stories.vocab)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    t = stories.tensors
    writer.add_tensor("token_embd.weight", t["embed"])
    writer.add_tensor("output_norm.weight", t["norm"])
    names = {
        "attention_norm": "attn_norm",
        "wq": "attn_q",
        "wk": "attn_k",
        "wv": "attn_v",
        "wo": "attn_output",
        "ffn_norm": "ffn_norm",
        "w1": "ffn_gate",
        "w2": "ffn_down",
        "w3": "ffn_up",
    }
    for n in range(stories.layers):
        for name, gguf_name in names.items():
            writer.add_tensor(f"blk.{n}.{gguf_name}.weight", np.ascontiguousarray(t[name][n]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
