"""Casts, pooled heads and resized vocabularies, compared with torch."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from puna import LlamaConfig, convert
from puna.checkpoint import open_checkpoint
from puna.errors import CheckpointError
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.torch_files import DTYPES, HAS_TORCH, Tensors, from_torch, to_torch
from tests.helpers.vocabularies import train_sentencepiece


def write_model(folder: Path, dtype: str = "float32", **changes: object) -> tuple[Path, Tensors]:
    """Writes a Hugging Face folder; returns its path and its tensors."""
    config = tiny_config(dtype=dtype, **changes)
    tensors = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tiny_tensors(config).items()}
    return write_folder(folder, config, tensors), tensors


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """Casts the array: with torch where it is installed, else with NumPy."""
    if HAS_TORCH:
        return from_torch(to_torch(array).to(getattr(importlib.import_module("torch"), dtype)))
    return array.astype(DTYPES[dtype])


def are_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Returns whether two arrays have the same type and values."""
    return one.dtype == other.dtype and np.array_equal(one, other)


def read_tensors(folder: Path) -> Tensors:
    """Returns the tensors of a folder in their stored types."""
    result = {}
    for name, weight in open_checkpoint(folder).tensors.items():
        dtype = DTYPES[str(weight.format.torch)]
        result[name] = np.array(weight.rows()).view(dtype).reshape(weight.shape)
    return result


@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("after", DTYPES)
def test_casts_equal_torch_casts(before: str, after: str, tmp_path: Path) -> None:
    folder, tensors = write_model(tmp_path / "in", before)
    convert(folder, tmp_path / "out", to="hf", dtype=after, verify=True)
    result = read_tensors(tmp_path / "out")
    assert all(are_equal(result[name], cast(tensor, after)) for name, tensor in tensors.items())
    assert LlamaConfig.from_pretrained(tmp_path / "out").dtype_name == after


def test_float32_norms_are_cast_to_the_type_of_the_model_if_that_is_exact(tmp_path: Path) -> None:
    folder, tensors = write_model(tmp_path / "in", "bfloat16")
    mixed = {name: t.astype(np.float32) if t.ndim == 1 else t for name, t in tensors.items()}
    mixed["model.norm.weight"] = mixed["model.norm.weight"] + np.float32(1e-4)  # not exact in bfloat16: stays float32
    write_folder(folder, LlamaConfig.from_pretrained(folder), mixed)
    convert(folder, tmp_path / "out", to="hf")
    result = read_tensors(tmp_path / "out")
    assert result["model.norm.weight"].dtype == np.float32
    mixed.pop("model.norm.weight")
    assert all(are_equal(result[name], tensors[name]) for name in mixed)


def test_values_too_large_for_a_type_are_refused(tmp_path: Path) -> None:
    folder, tensors = write_model(tmp_path / "in")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 70000.0
    write_folder(folder, LlamaConfig.from_pretrained(folder), tensors)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight holds the value 70000.*convert to bfloat16"):
        convert(folder, tmp_path / "out", to="hf", dtype="float16")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="dtype is 'int8'"):
        convert(folder, tmp_path / "out", to="hf", dtype="int8")


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_key_value_heads_are_pooled(heads: int, tmp_path: Path) -> None:
    folder, tensors = write_model(tmp_path / "in", num_key_value_heads=4)
    convert(folder, tmp_path / "out", to="hf", kv_heads=heads)
    result = read_tensors(tmp_path / "out")
    assert LlamaConfig.from_pretrained(tmp_path / "out").num_key_value_heads == heads
    for name, tensor in tensors.items():
        expected = tensor
        if ".k_proj." in name or ".v_proj." in name:
            pooled = tensor.reshape(heads, 4 // heads, 16, -1).mean(1, np.float64)
            expected = pooled.astype(np.float32).reshape(heads * 16, -1)
        assert np.allclose(result[name], expected, rtol=1e-6, atol=1e-7), name


def test_invalid_numbers_of_heads_are_refused(tmp_path: Path) -> None:
    folder, _ = write_model(tmp_path / "in", num_key_value_heads=4)
    for heads in (3, 8):
        with pytest.raises(CheckpointError, match=f"{heads} key-value heads cannot be pooled from 4"):
            convert(folder, tmp_path / "out", to="hf", kv_heads=heads)


@pytest.mark.parametrize(("size", "multiple", "rows"), [(100, None, 100), (None, 64, 128), (90, 8, 96), (50, None, 50)])
def test_vocabulary_is_resized(size: int | None, multiple: int | None, rows: int, tmp_path: Path) -> None:
    folder, tensors = write_model(tmp_path / "in", "bfloat16")
    convert(folder, tmp_path / "out", to="hf", vocab_size=size, pad_vocab_to=multiple, verify=True)
    result = read_tensors(tmp_path / "out")
    assert LlamaConfig.from_pretrained(tmp_path / "out").vocab_size == rows
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = tensors[name], result[name]
        assert after.shape == (rows, 64) and are_equal(after[:96], before[:rows])
        if rows > 96:
            mean = before.astype(np.float64).mean(0).astype(np.float32).astype(before.dtype)
            assert np.allclose(after[96:].astype(np.float32), mean.astype(np.float32), rtol=1e-2)


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path: Path) -> None:
    folder, _ = write_model(tmp_path / "in", eos_token_id=90)
    with pytest.raises(CheckpointError, match="loses special token 90"):
        convert(folder, tmp_path / "out", to="hf", vocab_size=80)


def test_transformers_computes_the_same_logits_after_a_conversion(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    folder, _ = write_model(tmp_path / "in", attention_bias=True, tie_word_embeddings=True)
    convert(folder, tmp_path / "out", to="hf", shards=3)
    ids = torch.arange(60).reshape(3, 20)
    with torch.no_grad():
        before, after = (
            LlamaForCausalLM.from_pretrained(path).eval()(ids).logits for path in (folder, tmp_path / "out")
        )
    assert torch.allclose(before, after, rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3


def test_the_plan_lists_the_changes(tmp_path: Path) -> None:
    folder, _ = write_model(tmp_path / "in", num_key_value_heads=4, hidden_size=128, head_dim=32, intermediate_size=128)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(vocab_size=96, byte_fallback=False))
    convert(folder, tmp_path / "q.gguf", quantize="q4_0")
    outcome = convert(tmp_path / "q.gguf", tmp_path / "m.gguf", quantize="q5_0", kv_heads=2, pad_vocab_to=64)
    formats = [weight.format.name for weight in open_checkpoint(tmp_path / "q.gguf").tensors.values()]
    assert outcome.conversion.plan.before == {name: formats.count(name) for name in set(formats)}
    notes = "\n".join(outcome.notes)
    assert "q4_0 to q5_0" in notes and "4 key-value heads become 2: the model needs training" in notes
    assert "32 new rows of vocabulary" in notes


def test_infinite_values_are_kept_by_casts_and_refused_by_quantising(tmp_path: Path) -> None:
    folder, tensors = write_model(tmp_path / "in")
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(vocab_size=96, byte_fallback=False))
    tensors["model.layers.1.mlp.up_proj.weight"][0, 4] = float("inf")
    write_folder(folder, LlamaConfig.from_pretrained(folder), tensors)
    outcome = convert(folder, tmp_path / "out", to="hf", dtype="bfloat16", verify=True)
    json.dumps(outcome.to_dict(), allow_nan=False)
    assert outcome.nll == {} and 0 < outcome.conversion.errors["mlp.up_proj.weight"] < 0.01
    assert any("was not measured: " in note for note in outcome.notes)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: .*not a finite number"):
        convert(folder, tmp_path / "m.gguf", quantize="q4_0")


def test_nll_is_not_measured_in_a_context_of_one_token(tmp_path: Path) -> None:
    folder, _ = write_model(tmp_path / "in", max_position_embeddings=1)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(vocab_size=96, byte_fallback=False))
    outcome = convert(folder, tmp_path / "out", to="hf", verify=True)
    assert outcome.nll == {} and "a context of 1 tokens leaves nothing to predict" in outcome.notes[-1]
