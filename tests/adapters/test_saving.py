"""Adapters survive being saved as PEFT folders and as GGUF files; PEFT and the package gguf read the files."""

from __future__ import annotations

import dataclasses

import gguf
import numpy as np
import pytest

from puna.adapters import open_adapter, save_adapter
from puna.adapters.adapter import Adapter
from puna.checkpoint.names import from_hf
from puna.errors import CheckpointError
from tests.adapters.cases import CASES, LOGITS, base_config, write_base, write_case
from tests.adapters.test_gguf import converted

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))


def read(folder, case, **changes):
    return open_adapter(write_case(folder, case, **changes), base_config(CASES[case][0]))


def arrays(part):
    """Returns the arrays and numbers of a part of an adapter."""
    if hasattr(part, "to_float32"):
        return [part.to_float32()]
    return [value for value in vars(part).values() if value is not None and not isinstance(value, str)]


def assert_equal(result: Adapter, expected: Adapter):
    for field in ("kind", "base", "head"):
        assert getattr(result, field) == getattr(expected, field)
    assert result.config.to_dict() == expected.config.to_dict()
    for field in ("low_rank", "scalings", "token_rows", "replaced"):
        parts, others = getattr(result, field), getattr(expected, field)
        assert parts.keys() == others.keys(), field
        for name, part in parts.items():
            for array, other in zip(arrays(part), arrays(others[name]), strict=True):
                assert np.allclose(array, other, rtol=1e-6, atol=0), name
    for field in ("prompt", "prefix"):
        array, other = getattr(result, field), getattr(expected, field)
        assert (array is None and other is None) or np.array_equal(array, other)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_folder_is_the_same_adapter(tmp_path, case):
    adapter = read(tmp_path / "adapter", case)
    assert save_adapter(adapter, tmp_path / "saved") == []
    assert_equal(open_adapter(tmp_path / "saved", base_config(CASES[case][0])), adapter)
    names = ["adapter_config.json", "adapter_model.safetensors"] + ["config.json"] * (adapter.head == "classification")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == names


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_logits_from_a_saved_folder(tmp_path, case):
    pytest.importorskip("peft")
    from tests.adapters.record import logits

    save_adapter(read(tmp_path / "adapter", case), tmp_path / "saved")
    result, expected = logits(write_base(tmp_path / "base", CASES[case][0]), tmp_path / "saved"), np.load(LOGITS)[case]
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", ["lora", "rslora", "layers", "patterns", "embeddings"])
def test_a_saved_gguf_file_is_the_same_adapter(tmp_path, case):
    adapter = read(tmp_path / "adapter", case)
    notes = save_adapter(adapter, tmp_path / "saved.gguf")
    assert bool(notes) == (case == "embeddings")
    saved = open_adapter(tmp_path / "saved.gguf", base_config("plain"))
    assert saved.base == "example/base" and saved.low_rank.keys() == adapter.low_rank.keys()
    for name, change in adapter.low_rank.items():
        result = saved.low_rank[name]
        assert np.array_equal(result.a, change.a) and len(result.a) == len(change.a)
        assert np.allclose(result.scale * result.b, change.scale * change.b, rtol=1e-6, atol=0)
        if case != "patterns":
            assert np.array_equal(result.b, change.b)


def test_gguf_reads_the_names_and_types_of_llama_cpp(tmp_path):
    adapter = read(tmp_path / "adapter", "embeddings", lora_alpha=6)
    save_adapter(adapter, tmp_path / "saved.gguf")
    reader = gguf.GGUFReader(tmp_path / "saved.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.type"] == "adapter" and values["adapter.type"] == "lora"
    assert values["general.architecture"] == "llama" and values[gguf.Keys.Adapter.LORA_ALPHA] == 6.0
    assert reader.fields[gguf.Keys.Adapter.LORA_ALPHA].types == [gguf.GGUFValueType.FLOAT32]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = converted(adapter)
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], array) for name, array in expected.items())
    assert tensors["token_embd.weight.lora_a"].shape == (48, 8)


def test_other_scales_are_multiplied_into_b(tmp_path):
    adapter = read(tmp_path / "adapter", "patterns")
    save_adapter(adapter, tmp_path / "saved.gguf")
    reader = gguf.GGUFReader(tmp_path / "saved.gguf")
    alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    expected = converted(adapter)
    for name, change in adapter.low_rank.items():
        key = f"{from_hf(name, 'gguf')}.lora_b"
        rank = tensors[key].shape[1]
        assert np.allclose(tensors[key] * alpha / rank, expected[key] * change.scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("dora", "DoRA"),
        ("lora_bias", "lora_bias"),
        ("saved", "complete tensors"),
        ("tokens", "trained tokens"),
        ("only_tokens", "the kind tokens, trained tokens"),
        ("ia3", "the kind ia3"),
        ("prompt", "the kind prompt"),
        ("classes", "complete tensors, a classification head"),
        ("embeddings_kept_tied", "a change of a tied head"),
    ],
)
def test_gguf_refuses_what_it_cannot_hold(tmp_path, case, message):
    with pytest.raises(CheckpointError, match=f"cannot hold {message}"):
        save_adapter(read(tmp_path / "adapter", case), tmp_path / "saved.gguf")
    assert not (tmp_path / "saved.gguf").exists()


def test_an_adapter_is_replaced_also_by_itself(tmp_path):
    adapter = read(tmp_path / "adapter", "saved")
    save_adapter(adapter, tmp_path / "adapter")
    assert_equal(open_adapter(tmp_path / "adapter", base_config("plain")), adapter)
    other = read(tmp_path / "other", "ia3")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "README.md").write_text("mine")
    (tmp_path / "saved" / "adapter_model.bin").write_text("old")
    save_adapter(other, tmp_path / "saved")
    save_adapter(adapter, tmp_path / "saved")
    assert_equal(open_adapter(tmp_path / "saved", base_config("plain")), adapter)
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_mixtures_that_peft_does_not_have_are_refused(tmp_path):
    adapter = read(tmp_path / "adapter", "dora")
    low_rank = dict(adapter.low_rank)
    low_rank[Q0] = dataclasses.replace(low_rank[Q0], magnitude=None)
    with pytest.raises(CheckpointError, match="only some matrices"):
        save_adapter(dataclasses.replace(adapter, low_rank=low_rank), tmp_path / "saved")
    biases = read(tmp_path / "biases", "biases")
    replaced = dict(list(biases.replaced.items())[1:])
    with pytest.raises(CheckpointError, match="13 of the model's 14 biases"):
        save_adapter(dataclasses.replace(biases, replaced=replaced), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("case", ["classes", "prompt_classes"])
def test_names_of_labels_are_saved_with_the_adapter_of_a_classifier(tmp_path, case):
    adapter = read(tmp_path / "adapter", case)
    names = {index: f"kind {index}" for index in range(adapter.config.num_labels)}
    settings = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    config = type(adapter.config).from_dict(
        adapter.config.to_dict(), **settings, problem_type="multi_label_classification"
    )
    save_adapter(dataclasses.replace(adapter, config=config), tmp_path / "saved")
    base = base_config(CASES[case][0])
    result = open_adapter(tmp_path / "saved", base).config
    assert result.id2label == names and result.problem_type == "multi_label_classification"
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    assert loaded.id2label == names and loaded.problem_type == "multi_label_classification"
    (tmp_path / "saved" / "config.json").unlink()
    assert open_adapter(tmp_path / "saved", base).config.id2label == base.id2label


def test_names_for_another_number_of_labels_are_refused(tmp_path):
    adapter = read(tmp_path / "adapter", "classes")
    save_adapter(adapter, tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}}')
    with pytest.raises(CheckpointError, match=r"config\.json: id2label has 5 labels, but the head of the adapter has"):
        open_adapter(tmp_path / "saved", base_config("classes"))
