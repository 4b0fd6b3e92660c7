"""Narrow and shallow models of every family in Meta's layout, with the published number of shards.

torch.save writes the files. The slices of shards and the order of rotary rows follow Hugging Face's conversion script
and Meta's fairscale layers, independently of puna's code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.torch_files import DTYPES, Tensors, save_torch


@dataclass(frozen=True)
class Family:
    """The shape of a published model, with heads of width `width`. `params` are the other keys of params.json."""

    name: str
    heads: int
    kv: int | None
    shards: int
    version: str
    dtype: str = "float16"
    vocab: int = 320
    width: int = 8
    multiple_of: int = 32
    multiplier: float | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        return self.heads * self.width

    @property
    def kv_heads(self) -> int:
        return self.kv or self.heads

    @property
    def ffn(self) -> int:
        hidden = int(2 * (4 * self.dim) / 3)
        hidden = int(self.multiplier * hidden) if self.multiplier else hidden
        return self.multiple_of * ((hidden + self.multiple_of - 1) // self.multiple_of)

    @property
    def is_llama3(self) -> bool:
        return self.version.startswith("3")

    def params_json(self, layers: int) -> dict[str, Any]:
        params = {"dim": self.dim, "multiple_of": self.multiple_of, "n_heads": self.heads, "n_layers": layers}
        if self.kv:
            params["n_kv_heads"] = self.kv
        if self.multiplier:
            params["ffn_dim_multiplier"] = self.multiplier
        return params | {"vocab_size": self.vocab if self.is_llama3 else -1, "norm_eps": 1e-5} | self.params


_LLAMA3: dict[str, Any] = {"vocab": 128256, "width": 2, "dtype": "bfloat16", "multiple_of": 16}
_THETA, _SCALED = {"rope_theta": 500000.0}, {"rope_theta": 500000.0, "use_scaled_rope": True}

FAMILIES = [
    Family("llama1-7b", 32, None, 1, "1", params={"norm_eps": 1e-6}),
    Family("llama1-13b", 40, None, 2, "1", params={"norm_eps": 1e-6}),
    Family("llama1-30b", 52, None, 4, "1", params={"norm_eps": 1e-6}),
    Family("llama1-65b", 64, None, 8, "1"),
    Family("llama2-7b", 32, None, 1, "2", "bfloat16"),
    Family("llama2-13b", 40, None, 2, "2", "bfloat16"),
    Family("llama2-70b", 64, 8, 8, "2", "bfloat16", multiplier=1.3, multiple_of=128),
    Family("code-7b", 32, None, 1, "code", "bfloat16", vocab=336, params={"rope_theta": 1e6}),
    Family("code-34b", 64, 8, 4, "code", "bfloat16", multiplier=1.0, params={"rope_theta": 1e6}),
    Family("code-70b", 64, 8, 8, "code", "bfloat16", vocab=336, multiplier=1.3, multiple_of=128,
           params={"rope_theta": 1e6}),
    Family("llama3-8b", 32, 8, 1, "3", multiplier=1.3, params=_THETA, **_LLAMA3),
    Family("llama3-70b", 64, 8, 8, "3", multiplier=1.3, params=_THETA, **_LLAMA3),
    Family("llama3.1-405b", 128, 8, 8, "3.1", multiplier=1.2, params=_SCALED, **_LLAMA3),
    Family("llama3.1-405b-mp16", 128, 8, 16, "3.1", multiplier=1.2, params=_SCALED, **_LLAMA3),
    Family("llama3.2-1b", 32, 8, 1, "3.2", multiplier=1.5, params=_SCALED, **_LLAMA3),
    Family("llama3.2-3b", 24, 8, 1, "3.2", multiplier=1.0, params=_SCALED, **_LLAMA3),
    Family("llama3.3-70b", 64, 8, 8, "3.3", multiplier=1.3, params=_SCALED, **_LLAMA3),
]  # fmt: skip

TIED = ("llama3.2-1b", "llama3.2-3b")


def hf_tensors(family: Family, layers: int = 2, seed: int = 0) -> Tensors:
    """Returns random weights under Hugging Face's names; a tied head is a copy of the embedding, as in Meta's files."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        if family.dtype == "float32":
            return random.standard_normal(shape, np.float32)
        # Random bits whose exponents give magnitudes below 2. A model has up to 65 million values, and drawing them
        # from a distribution is slow.
        bits = random.integers(0, 2**16, shape, np.uint16) & 0x87FF | 0x3800
        return bits.view(DTYPES[family.dtype])

    kv = family.kv_heads * family.width
    tensors = {"model.embed_tokens.weight": draw(family.vocab, family.dim), "model.norm.weight": draw(family.dim)}
    tied = family.name in TIED
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy() if tied else draw(family.vocab, family.dim)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": draw(family.dim),
            f"{prefix}self_attn.q_proj.weight": draw(family.dim, family.dim),
            f"{prefix}self_attn.k_proj.weight": draw(kv, family.dim),
            f"{prefix}self_attn.v_proj.weight": draw(kv, family.dim),
            f"{prefix}self_attn.o_proj.weight": draw(family.dim, family.dim),
            f"{prefix}post_attention_layernorm.weight": draw(family.dim),
            f"{prefix}mlp.gate_proj.weight": draw(family.ffn, family.dim),
            f"{prefix}mlp.up_proj.weight": draw(family.ffn, family.dim),
            f"{prefix}mlp.down_proj.weight": draw(family.dim, family.ffn),
        }
    return tensors


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Inverts `permute` of convert_llama_weights_to_hf.py."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def meta_shards(family: Family, tensors: Tensors) -> list[Tensors]:
    """Returns the tensors of each consolidated file, sliced as by fairscale's column- and row-parallel layers."""
    count = family.shards
    shards: list[Tensors] = [{} for _ in range(count)]

    def add(name: str, weight: np.ndarray, axis: int | None) -> None:
        for number, shard in enumerate(shards):
            shard[name] = weight.copy() if axis is None else np.split(weight, count, axis)[number].copy()

    def add_heads(name: str, weight: np.ndarray) -> None:
        heads = weight.reshape(family.kv_heads, family.width, -1)
        for number, shard in enumerate(shards):
            if count <= family.kv_heads:
                shard[name] = np.split(weight, count)[number].copy()
            else:  # fewer heads than shards: several shards hold the same head
                shard[name] = heads[number * family.kv_heads // count].copy()

    add("tok_embeddings.weight", tensors["model.embed_tokens.weight"], 0 if family.is_llama3 else 1)
    add("norm.weight", tensors["model.norm.weight"], None)
    add("output.weight", tensors["lm_head.weight"], 0)
    for layer in range(sum(name.endswith("o_proj.weight") for name in tensors)):
        hf, meta = f"model.layers.{layer}.", f"layers.{layer}."
        add(meta + "attention_norm.weight", tensors[hf + "input_layernorm.weight"], None)
        add(meta + "ffn_norm.weight", tensors[hf + "post_attention_layernorm.weight"], None)
        add(meta + "attention.wq.weight", interleave(tensors[hf + "self_attn.q_proj.weight"], family.heads), 0)
        add_heads(meta + "attention.wk.weight", interleave(tensors[hf + "self_attn.k_proj.weight"], family.kv_heads))
        add_heads(meta + "attention.wv.weight", tensors[hf + "self_attn.v_proj.weight"])
        add(meta + "attention.wo.weight", tensors[hf + "self_attn.o_proj.weight"], 1)
        add(meta + "feed_forward.w1.weight", tensors[hf + "mlp.gate_proj.weight"], 0)
        add(meta + "feed_forward.w3.weight", tensors[hf + "mlp.up_proj.weight"], 0)
        add(meta + "feed_forward.w2.weight", tensors[hf + "mlp.down_proj.weight"], 1)
    return shards


def write_meta(folder: Path, family: Family, tensors: Tensors) -> Path:
    """Writes a folder in Meta's layout."""
    folder.mkdir()
    layers = sum(name.endswith("o_proj.weight") for name in tensors)
    (folder / "params.json").write_text(json.dumps(family.params_json(layers)))
    for number, shard in enumerate(meta_shards(family, tensors)):
        save_torch(shard | {"rope.freqs": np.ones(4, np.float32)}, folder / f"consolidated.{number:02}.pth")
    return folder
