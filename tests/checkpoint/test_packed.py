"""Models with GPTQ or AWQ matrices run, and can be converted, like the same models with float weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import puna
from puna.backend import Chunk, consecutive_pages
from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.native.backend import NativeBackend
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.torch_files import Tensors
from tests.helpers.vocabularies import train_sentencepiece

GROUP = 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
PACKINGS = [(GPTQ, "q4_0"), (GPTQ | {"sym": False}, "q4_1"), (AWQ, "q4_1")]


def quantise(weight: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quantises a matrix to integers (outputs, inputs), zero points and float16 scales (outputs, groups)."""
    groups = weight.reshape(len(weight), -1, GROUP)
    if symmetric:
        scale = (np.abs(groups).max(-1) / 7).astype(np.float16).astype(np.float32)
        zero = np.full_like(scale, 8)
    else:
        low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
        scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 1, 15)
    numbers = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, 15)
    return numbers.reshape(weight.shape).astype(np.int32), zero.astype(np.int32), scale


def pack_words(numbers: np.ndarray) -> np.ndarray:
    """Packs eight integers along the first axis into each word, the first integer in the lowest bits."""
    words = np.zeros((len(numbers) // 8, *numbers.shape[1:]), np.uint32)
    for k in range(8):
        words |= numbers[k::8].astype(np.uint32) << np.uint32(4 * k)
    return words.view(np.int32)


def pack(tensors: Tensors, settings: dict[str, Any]) -> tuple[Tensors, Tensors]:
    """Returns the tensors of a folder with packed matrices, and the values of all its weights."""
    packed, plain = {}, {}
    for name, weight in tensors.items():
        if not name.endswith("proj.weight"):
            packed[name] = plain[name] = weight.astype(np.float16)
            continue
        numbers, zero, scale = quantise(weight, settings.get("sym", False))
        plain[name] = (numbers - zero.repeat(GROUP, 1)).astype(np.float32) * scale.repeat(GROUP, 1)
        base = name.removesuffix("weight")
        if settings["quant_method"] == "gptq":
            packed[base + "qweight"] = pack_words(numbers.T)
            packed[base + "qzeros"] = pack_words(zero - 1).T
            packed[base + "g_idx"] = (np.arange(weight.shape[1]) // GROUP).astype(np.int32)
            packed[base + "bias"] = np.zeros(len(weight), np.float16)
        else:
            order = np.arange(len(weight)).reshape(-1, 8)[:, AWQ_ORDER].reshape(-1)
            packed[base + "qweight"] = pack_words(numbers[order]).T
            packed[base + "qzeros"] = pack_words(zero[order]).T
        packed[base + "scales"] = scale.astype(np.float16).T
    return packed, plain


def write_packed(folder: Path, settings: dict[str, Any]) -> tuple[LlamaConfig, Tensors]:
    """Writes a folder with packed matrices; returns the configuration and the values of all weights."""
    config = tiny_config(vocab_size=420, dtype="float16")
    small = {name: weight / 8 if weight.ndim == 2 else weight for name, weight in tiny_tensors(config).items()}
    packed, plain = pack(small, settings)
    write_folder(folder, config, packed)
    change_config(folder, quantization_config=settings)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    return config, plain


def change_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))


@pytest.mark.parametrize(("settings", "name"), PACKINGS)
def test_a_packed_folder_is_run_and_converted(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    config, plain = write_packed(tmp_path / "packed", settings)
    write_folder(tmp_path / "plain", config, {key: value.astype(np.float32) for key, value in plain.items()})
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].format.name == name
    tolerance = 0.0 if name == "q4_0" else 15 * 2**-11
    for key, value in plain.items():
        difference = np.abs(checkpoint.tensors[key].to_float32() - value.astype(np.float32))
        assert difference.max() <= tolerance * np.abs(value).max(), key

    puna.convert(tmp_path / "packed", tmp_path / "model.gguf", to="gguf")
    blocks = open_checkpoint(tmp_path / "model.gguf").tensors
    for key, weight in checkpoint.tensors.items():
        assert np.array_equal(blocks[key].to_float32(), weight.to_float32()), key
    assert blocks["model.layers.0.self_attn.q_proj.weight"].format.name == name
    ids = np.arange(40, dtype=np.int64) % config.vocab_size
    chunks = [Chunk(consecutive_pages(len(ids)), ids, 0, len(ids))]
    packed_logits, block_logits = (
        NativeBackend(config, weights).forward(chunks).logits for weights in (checkpoint.tensors, blocks)
    )
    assert np.array_equal(np.asarray(packed_logits), np.asarray(block_logits))

    puna.convert(tmp_path / "packed", tmp_path / "hf")
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    converted = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    for key, weight in checkpoint.tensors.items():
        assert np.array_equal(converted[key].astype(np.float32), weight.to_float32()), key


@pytest.mark.parametrize(("settings", "name"), PACKINGS)
def test_pytorch_runs_a_packed_folder(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config, plain = write_packed(tmp_path / "packed", settings)
    write_folder(tmp_path / "plain", config, {key: value.astype(np.float32) for key, value in plain.items()})
    ids = torch.arange(40)[None] % config.vocab_size
    with torch.no_grad():
        expected, logits = (
            puna.LlamaForCausalLM.from_pretrained(tmp_path / folder)(ids).logits[0].numpy()
            for folder in ("plain", "packed")
        )
    assert np.abs(logits - expected).max() <= (1e-4 if name == "q4_0" else 0.02) * expected.std()


def test_old_file_names_of_weights_and_settings_are_read(tmp_path: Path) -> None:
    _, plain = write_packed(tmp_path, GPTQ)
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")
    change_config(tmp_path, quantization_config=None)
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": GROUP, "desc_act": False}))
    key = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(open_checkpoint(tmp_path).tensors[key].to_float32(), plain[key])


def test_inspection_counts_packed_matrices(tmp_path: Path) -> None:
    _, plain = write_packed(tmp_path, GPTQ)
    report = inspect_checkpoint(tmp_path)
    assert report.container == "safetensors, GPTQ" and report.dtypes["q4_0"]["tensors"] == 14 and not report.errors
    assert report.parameters == sum(value.size for value in plain.values())
    assert not any("quantization_config" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 8}, "quantised to 8 bits according to quantization_config in config.json; puna reads GPTQ and AWQ"),
        ({"checkpoint_format": "marlin"}, r"quantised with gptq \(marlin\)"),
        ({"quant_method": "awq", "version": "gemv"}, r"quantised with awq \(gemv\)"),
        ({"quant_method": "compressed-tensors"}, "quantised with compressed-tensors"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "many"}, "group_size is many"),
        ({"group_size": 16}, "scales of shape .* do not fit 64 outputs and 96 inputs in groups of 16"),
    ],
)
def test_unsupported_packings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_packed(tmp_path, GPTQ)
    change_config(tmp_path, quantization_config=GPTQ | settings)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_missing_settings_and_missing_parts_are_refused(tmp_path: Path) -> None:
    write_packed(tmp_path, GPTQ)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change_config(tmp_path, quantization_config=None)
    with pytest.raises(CheckpointError, match="missing tensors"):
        open_checkpoint(tmp_path)
    change_config(tmp_path, quantization_config=GPTQ)
    name = "model.layers.0.mlp.up_proj.qzeros"
    safetensors.numpy.save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=r"packed matrix model\.layers\.0\.mlp\.up_proj lacks qzeros"):
        open_checkpoint(tmp_path)
    tensors["model.layers.0.mlp.up_proj.bias"] += 1
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"does not have: 'model\.layers\.0\.mlp\.up_proj\.bias'"):
        open_checkpoint(tmp_path)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight' is stored as i32"):
        open_checkpoint(write_folder(tmp_path, config, tensors))
