"""GGUF adapters, written by the package gguf as llama.cpp's convert_lora_to_gguf.py writes them, are read."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from puna.adapters import open_adapter
from puna.checkpoint.names import EMBEDDING, from_hf
from puna.errors import CheckpointError
from tests.adapters.cases import base_config, write_case
from tests.helpers.tiny_checkpoints import llama_cpp_permute

CONFIG = base_config("plain")
Q0 = "model.layers.0.self_attn.q_proj.weight"


def converted(adapter):
    """Returns the tensors that llama.cpp's converter makes of a LoRA."""
    tensors = {}
    for name, change in adapter.low_rank.items():
        a, b = change.a, change.b
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if name == EMBEDDING:
            a, b = b, a.T
        elif heads:
            b = llama_cpp_permute(b, heads)
        tensors |= {f"{from_hf(name, 'gguf')}.lora_a": a, f"{from_hf(name, 'gguf')}.lora_b": b}
    return tensors


def write(path, tensors, kind=gguf.GGMLQuantizationType.F32, keys=None):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 6.0)
    for key, value in (keys or {}).items():
        writer.kv_data[0].pop(key, None)
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_float32(key, value)
    for name, values in tensors.items():
        data = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def peft(tmp_path):
    return open_adapter(write_case(tmp_path / "peft", "lora"), CONFIG)


def assert_equal(result, expected):
    assert result.low_rank.keys() == expected.low_rank.keys()
    for name, change in expected.low_rank.items():
        assert np.array_equal(result.low_rank[name].a, change.a), name
        assert np.array_equal(result.low_rank[name].b, change.b), name
        assert result.low_rank[name].scale == change.scale


def test_a_converted_adapter_equals_the_folder_of_peft(tmp_path, peft):
    path = write(tmp_path / "adapter.gguf", converted(peft))
    for given in (path, tmp_path):
        assert_equal(open_adapter(given, CONFIG), peft)


def test_the_embedding_is_transposed(tmp_path):
    peft = open_adapter(write_case(tmp_path, "embeddings", lora_alpha=6), CONFIG)
    path = write(tmp_path / "adapter.gguf", converted(peft))
    with pytest.raises(CheckpointError, match="adapter_model"):
        open_adapter(tmp_path / "adapter_model.safetensors", CONFIG)
    result = open_adapter(path, CONFIG)
    assert np.array_equal(result.low_rank[EMBEDDING].b, peft.low_rank[EMBEDDING].b)
    assert np.array_equal(result.low_rank[EMBEDDING].a, peft.low_rank[EMBEDDING].a)


def test_other_types_and_alpha_0(tmp_path, peft):
    path = write(tmp_path / "f16.gguf", converted(peft), gguf.GGMLQuantizationType.F16, {"adapter.lora.alpha": 0.0})
    change = open_adapter(path, CONFIG).low_rank[Q0]
    assert change.scale == 1.0
    assert np.array_equal(change.a, peft.low_rank[Q0].a.astype(np.float16).astype(np.float32))


def test_norms_replace_those_of_the_model(tmp_path, peft):
    norm = np.arange(32, dtype=np.float32)
    path = write(tmp_path / "adapter.gguf", converted(peft) | {"blk.1.ffn_norm.weight": norm})
    adapter = open_adapter(path, CONFIG)
    replaced = adapter.replaced["model.layers.1.post_attention_layernorm.weight"]
    assert np.array_equal(replaced.data.view(np.float32), norm)
    assert "llama.cpp ignores" in adapter.notes[0]


def test_the_prompt_of_the_training_is_noted(tmp_path, peft):
    path = write(tmp_path / "adapter.gguf", converted(peft), keys={"adapter.lora.prompt_prefix": "Translate:"})
    assert "'Translate:'" in open_adapter(path, CONFIG).notes[0]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("blk.0.attn_q.weight.lora_b", None, "no .lora_b"),
        ("blk.0.attn_q.weight.lora_a", None, "no .lora_a"),
        ("blk.0.attn_q.weight.lora_a", np.zeros((4, 33)), r"\(4, 33\).*\(4, 32\)"),
        ("blk.0.attn_q.weight.lora_b", np.zeros((30, 4)), r"\(30, 4\).*\(32, 4\)"),
        ("blk.0.attn_q.weight.lora_b", np.full((32, 4), np.inf), "not finite"),
        ("blk.2.attn_q.weight.lora_b", np.zeros((32, 4)), "blk.2"),
        ("blk.0.attn_q.weight", np.zeros((32, 32)), "neither .lora_a, .lora_b nor a norm"),
        ("blk.0.attn_norm.weight.lora_a", np.zeros((4, 32)), "does not belong to any matrix or norm"),
        ("cls.weight.lora_a", np.zeros((4, 32)), "cls"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, peft, name, values, message):
    tensors = converted(peft) | {name: values}
    tensors = {key: array.astype(np.float32) for key, array in tensors.items() if array is not None}
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write(tmp_path / "adapter.gguf", tensors), CONFIG)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.type": "model"}, "general.type is 'model'"),
        ({"general.architecture": "gemma"}, "general.architecture is 'gemma'"),
        ({"adapter.type": "ia3"}, "adapter.type is 'ia3'"),
        ({"adapter.lora.alpha": None}, "adapter.lora.alpha is None"),
        ({"adapter.lora.alpha": float("nan")}, "adapter.lora.alpha is nan"),
        ({"adapter.alora.invocation_tokens": [3, 4]}, "only to the text after"),
    ],
)
def test_other_adapters_are_refused(tmp_path, peft, keys, message):
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write(tmp_path / "adapter.gguf", converted(peft), keys=keys), CONFIG)


def test_a_change_of_a_tied_head_is_refused(tmp_path):
    peft = open_adapter(write_case(tmp_path, "embeddings"), CONFIG)
    with pytest.raises(CheckpointError, match="shares with the embedding"):
        open_adapter(write(tmp_path / "adapter.gguf", converted(peft)), base_config("tied"))
