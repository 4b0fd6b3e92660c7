"""The tensors of a LLaMA model: their names in Hugging Face, GGUF and Meta files, their shapes, and when they exist.

All conversions between these names use `TABLE`. Shapes are (outputs, inputs), the order of PyTorch's Linear, in the
sizes of `LlamaConfig`:

    vocab   vocab_size             q       num_attention_heads * head_dim
    hidden  hidden_size            kv      num_key_value_heads * head_dim
    ffn     intermediate_size      labels  num_labels           ends    2, the start and the end of an answer

Row order: if `heads` is set, GGUF and Meta files store the two rows of each rotated pair next to each other (rows 0,
E/2, 1, E/2 + 1, ... of each head of width E); Hugging Face files store the first rows of all pairs of a head, then the
second rows. `interleaved_rows` returns the permutation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from puna.config import LlamaConfig
from puna.config.pruning import pruned_heads, remaining_heads

Head = Literal["lm", "classification", "token_classification", "question_answering", "none"]
"""The layer after the hidden states: logits over the vocabulary; scores of the classes of a text, or of each token;
scores of each token as the start and the end of an answer; or none (a bare `LlamaModel`)."""

Dialect = Literal["gguf", "meta"]


@dataclass(frozen=True)
class TensorName:
    """The names and shape of a tensor, or of one tensor per layer: a line of `TABLE`.

    Attributes:
        hf, gguf, meta: the names, with `{n}` for the layer; None if that layout has no such tensor.
        shape: for each axis of the tensor, the name of its size (see the module's docstring).
        heads: if the row order differs between layouts, the heads to which the rows belong.
        when: the condition under which the tensor exists.
    """

    hf: str
    gguf: str | None
    meta: str | None
    shape: tuple[str, ...]
    heads: Literal["q", "k"] | None = None
    when: Literal["always", "score", "attention_bias", "mlp_bias"] | Head = "always"


_L, _B, _M = "model.layers.{n}.", "blk.{n}.", "layers.{n}."

# fmt: off
TABLE = (
    TensorName("model.embed_tokens.weight", "token_embd.weight", "tok_embeddings.weight", ("vocab", "hidden")),
    TensorName(_L + "input_layernorm.weight", _B + "attn_norm.weight", _M + "attention_norm.weight", ("hidden",)),
    TensorName(_L + "self_attn.q_proj.weight", _B + "attn_q.weight", _M + "attention.wq.weight", ("q", "hidden"), "q"),
    TensorName(_L + "self_attn.k_proj.weight", _B + "attn_k.weight", _M + "attention.wk.weight", ("kv", "hidden"), "k"),
    TensorName(_L + "self_attn.v_proj.weight", _B + "attn_v.weight", _M + "attention.wv.weight", ("kv", "hidden")),
    TensorName(_L + "self_attn.o_proj.weight", _B + "attn_output.weight", _M + "attention.wo.weight", ("hidden", "q")),
    TensorName(_L + "self_attn.q_proj.bias", _B + "attn_q.bias", None, ("q",), "q", when="attention_bias"),
    TensorName(_L + "self_attn.k_proj.bias", _B + "attn_k.bias", None, ("kv",), "k", when="attention_bias"),
    TensorName(_L + "self_attn.v_proj.bias", _B + "attn_v.bias", None, ("kv",), when="attention_bias"),
    TensorName(_L + "self_attn.o_proj.bias", _B + "attn_output.bias", None, ("hidden",), when="attention_bias"),
    TensorName(_L + "post_attention_layernorm.weight", _B + "ffn_norm.weight", _M + "ffn_norm.weight", ("hidden",)),
    TensorName(_L + "mlp.gate_proj.weight", _B + "ffn_gate.weight", _M + "feed_forward.w1.weight", ("ffn", "hidden")),
    TensorName(_L + "mlp.up_proj.weight", _B + "ffn_up.weight", _M + "feed_forward.w3.weight", ("ffn", "hidden")),
    TensorName(_L + "mlp.down_proj.weight", _B + "ffn_down.weight", _M + "feed_forward.w2.weight", ("hidden", "ffn")),
    TensorName(_L + "mlp.gate_proj.bias", _B + "ffn_gate.bias", None, ("ffn",), when="mlp_bias"),
    TensorName(_L + "mlp.up_proj.bias", _B + "ffn_up.bias", None, ("ffn",), when="mlp_bias"),
    TensorName(_L + "mlp.down_proj.bias", _B + "ffn_down.bias", None, ("hidden",), when="mlp_bias"),
    TensorName("model.norm.weight", "output_norm.weight", "norm.weight", ("hidden",)),
    TensorName("lm_head.weight", "output.weight", "output.weight", ("vocab", "hidden"), when="lm"),
    TensorName("score.weight", None, None, ("labels", "hidden"), when="score"),
    TensorName("score.bias", None, None, ("labels",), when="token_classification"),
    TensorName("qa_outputs.weight", None, None, ("ends", "hidden"), when="question_answering"),
    TensorName("qa_outputs.bias", None, None, ("ends",), when="question_answering"),
)
# fmt: on
"""Every tensor of a LLaMA model, in the order in which the forward pass uses them."""

_BY_HF = {line.hf: line for line in TABLE}

_SPLIT_INPUTS = ("embed_tokens.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight")
"""Name suffixes of the tensors that Meta's shards split by columns. (Llama 3 splits the embedding by rows instead.)"""

_TO_HF: dict[Dialect, dict[str | None, str]] = {
    "gguf": {line.gguf: line.hf for line in TABLE if line.gguf is not None},
    "meta": {line.meta: line.hf for line in TABLE if line.meta is not None},
}

_LAYER = re.compile(r"\.(0|[1-9][0-9]{0,8})\.")

_IGNORED = re.compile(
    r"(^|\.)(rotary_emb\.\w*(inv_freq|cos_cached|sin_cached|\bcos|\bsin)|rope\.freqs|freqs_(cis|cos|sin)|causal_mask)$"
)


def is_ignored(name: str) -> bool:
    """Whether the tensor holds rotary frequencies, their cosines and sines, or the causal mask.

    Several programs store them, although the configuration determines them.
    """
    return _IGNORED.search(name) is not None


def _split(name: str) -> tuple[str, str]:
    """Returns the name with `{n}` in place of its layer, and the layer ("" if it has none)."""
    match = _LAYER.search(name)
    if match is None or "{" in name:
        return name.replace("{", "{{"), ""
    return f"{name[: match.start()]}.{{n}}.{name[match.end() :]}", match[1]


def is_known(name: str) -> bool:
    """Whether Hugging Face's LLaMA models may have a tensor of this name."""
    return _split(name)[0] in _BY_HF


EMBEDDING, HEAD, SCORE = "model.embed_tokens.weight", "lm_head.weight", "score.weight"
"""The two matrices with one row per token of the vocabulary; if they are tied, only the first exists."""


HEADS: dict[Head, frozenset[str]] = {
    "lm": frozenset({HEAD}),
    "classification": frozenset({SCORE}),
    "token_classification": frozenset({SCORE, "score.bias"}),
    "question_answering": frozenset({"qa_outputs.weight", "qa_outputs.bias"}),
    "none": frozenset(),
}
"""The tensors of each head."""

CLASSES: dict[Head, str] = {
    "lm": "LlamaForCausalLM",
    "classification": "LlamaForSequenceClassification",
    "token_classification": "LlamaForTokenClassification",
    "question_answering": "LlamaForQuestionAnswering",
    "none": "LlamaModel",
}
"""Hugging Face's name of the class with each head."""


def file_name(name: str, head: Head) -> str:
    """Returns the name of a tensor in the files of a model with this head: question answering has another prefix."""
    return f"transformer.{name.removeprefix('model.')}" if head == "question_answering" and "qa_" not in name else name


def to_hf(name: str, dialect: Dialect) -> str | None:
    """Returns Hugging Face's name of a tensor that is called `name` in GGUF or Meta files; None if it is unknown."""
    pattern, layer = _split(name)
    hf_name = _TO_HF[dialect].get(pattern)
    return None if hf_name is None else hf_name.replace("{n}", layer)


def from_hf(name: str, dialect: Dialect) -> str | None:
    """Returns the GGUF or Meta name of the tensor with Hugging Face's `name`; None if it has none."""
    pattern, layer = _split(name)
    line = _BY_HF.get(pattern)
    other = None if line is None else line.gguf if dialect == "gguf" else line.meta
    return None if other is None else other.replace("{n}", layer)


def meta_split(name: str, shape: tuple[int, ...]) -> Literal[0, 1] | None:
    """Returns the axis along which Meta's shards divide Hugging Face's tensor `name`; None if all have a copy."""
    return None if len(shape) == 1 else 1 if name.endswith(_SPLIT_INPUTS) else 0


def expected_tensors(config: LlamaConfig, head: Head) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields Hugging Face's name and the shape of every tensor of a model."""
    exists = {
        "always": True,
        "lm": head == "lm" and not config.tie_word_embeddings,
        "score": head in ("classification", "token_classification"),
        "token_classification": head == "token_classification",
        "question_answering": head == "question_answering",
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    sizes: dict[str, int] = {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "ffn": config.intermediate_size,
        "q": config.num_attention_heads * config.head_dim,
        "kv": config.num_key_value_heads * config.head_dim,
        "labels": config.num_labels,
        "ends": 2,
    }
    for line in TABLE:
        if exists[line.when] and "{n}" not in line.hf:
            yield line.hf, tuple(sizes[axis] for axis in line.shape)
    pruned = pruned_heads(config)
    for layer in range(config.num_hidden_layers):
        if pruned:
            queries, keys = remaining_heads(config, layer)
            sizes |= {"q": len(queries) * config.head_dim, "kv": len(keys) * config.head_dim}
        for line in TABLE:
            if exists[line.when] and "{n}" in line.hf:
                yield line.hf.replace("{n}", str(layer)), tuple(sizes[axis] for axis in line.shape)


def interleaved_rows(name: str, config: LlamaConfig) -> NDArray[np.intp] | None:
    """Maps each row of Hugging Face's tensor `name` to its row in GGUF and Meta files; None if the order is the same.

    With E the head's width, row h E + j E/2 + i (head h, half j, pair i) is row h E + 2 i + j of the file.
    """
    line = _BY_HF.get(_split(name)[0])
    if line is None or line.heads is None:
        return None
    heads = config.num_attention_heads if line.heads == "q" else config.num_key_value_heads
    rows = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
    order: NDArray[np.intp] = rows.swapaxes(1, 2).reshape(-1)
    return order
