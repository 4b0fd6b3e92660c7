"""The table of tensor names agrees with transformers and the package gguf."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from puna.checkpoint.names import TABLE, expected_tensors, from_hf, interleaved_rows, is_ignored, to_hf
from tests.helpers.tiny_checkpoints import llama_cpp_permute, tiny_config


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", ["lm", "classification", "none"])
def test_names_and_shapes_equal_those_of_transformers(bias: bool, tied: bool, head: str) -> None:
    config = tiny_config(attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied, num_labels=3, head_dim=24)
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference_config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied, num_labels=3,
    )  # fmt: skip
    model_class = {
        "lm": transformers.LlamaForCausalLM,
        "classification": transformers.LlamaForSequenceClassification,
        "none": transformers.LlamaModel,
    }[head]
    with torch.device("meta"):
        model = model_class(reference_config)
    prefix = "model." if head == "none" else ""
    shapes = {prefix + name: tuple(value.shape) for name, value in model.state_dict().items()}
    if tied and head == "lm":
        del shapes["lm_head.weight"]
    assert dict(expected_tensors(config, head)) == shapes


def test_gguf_names_equal_those_of_the_package_gguf() -> None:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 13)
    for name, _ in expected_tensors(tiny_config(num_hidden_layers=13, attention_bias=True, mlp_bias=True), "lm"):
        gguf_name = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None and from_hf(name, "gguf") == gguf_name and to_hf(gguf_name, "gguf") == name


def test_meta_names_are_translated_in_both_directions() -> None:
    for name, _ in expected_tensors(tiny_config(num_hidden_layers=13), "lm"):
        meta = from_hf(name, "meta")
        assert meta is not None and to_hf(meta, "meta") == name
    assert to_hf("layers.11.feed_forward.w2.weight", "meta") == "model.layers.11.mlp.down_proj.weight"
    assert to_hf("layers.0.attention.wo.weight", "meta") == "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        "blk.00.attn_q.weight",
        "blk.{n}.attn_q.weight",
        "blk.1.{n}.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.１.attn_q.weight",
        "blk.1.2.attn_q.weight",
        "blk.9999999999.attn_q.weight",
        "blk.1.attn_q.weight ",
        "blk.1.",
        "a",
        "",
    ],
)
def test_invalid_names_are_not_translated(name: str) -> None:
    assert to_hf(name, "gguf") is None
    assert from_hf(name.replace("blk", "model.layers").replace("attn_q", "self_attn.q_proj"), "gguf") is None


def test_names_are_unique() -> None:
    for column in ([line.hf for line in TABLE], [line.gguf for line in TABLE], [line.meta for line in TABLE]):
        names = [name for name in column if name is not None]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize(("heads", "kv", "width"), [(4, 2, 16), (8, 1, 6), (3, 3, 2)])
def test_interleaved_rows_invert_llama_cpps_permutation(heads: int, kv: int, width: int) -> None:
    config = tiny_config(num_attention_heads=heads, num_key_value_heads=kv, head_dim=width)
    for part, count in (("q", heads), ("k", kv)):
        original = np.arange(count * width * 3).reshape(count * width, 3)
        order = interleaved_rows(f"model.layers.7.self_attn.{part}_proj.weight", config)
        np.testing.assert_array_equal(llama_cpp_permute(original, count)[order], original)
        assert order is not None and sorted(order) == list(range(count * width))
    assert interleaved_rows("model.layers.0.self_attn.v_proj.weight", config) is None
    assert interleaved_rows("model.embed_tokens.weight", config) is None


def test_only_rotary_frequencies_are_ignored() -> None:
    assert is_ignored("model.layers.0.self_attn.rotary_emb.inv_freq") and is_ignored("rope.freqs")
    assert not is_ignored("rope.freqs.weight") and not is_ignored("model.inv_freq") and not is_ignored("xrope.freqs")
