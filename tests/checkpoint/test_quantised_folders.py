"""Folders quantised by compressed-tensors or bitsandbytes run and are converted; errors for other methods name them.

tests/formats/test_scaled.py compares the values of single matrices with those of the libraries.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import puna
from puna.backend import Chunk, consecutive_pages
from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.config import LlamaConfig
from puna.errors import CheckpointError
from puna.formats.safetensors import open_safetensors
from puna.native.backend import NativeBackend
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.torch_files import Tensors
from tests.helpers.vocabularies import train_sentencepiece

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32
)  # fmt: skip
BF16 = ml_dtypes.bfloat16

WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": None}},
    "ignore": ["lm_head"],
    "quantization_status": "compressed",
}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8, "dynamic": True}}},
}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def pack_int4(name: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """Returns the parts of a matrix in groups of 32, and its values in bfloat16."""
    groups = weight.reshape(len(weight), -1, 32)
    scale = (np.abs(groups).max(-1) / 7).astype(BF16)
    codes = np.clip(np.rint(groups / scale[..., None].astype(np.float32)), -8, 7)
    values = (codes * scale[..., None].astype(np.float32)).astype(BF16).reshape(weight.shape)
    nibbles = (codes.reshape(weight.shape) + 8).astype(np.uint8)
    packed = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(np.int32)
    shape = np.array(weight.shape)
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": shape}, values


def pack_int8(name: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """Returns the parts of a matrix with a scale per row, and its values in bfloat16."""
    scale = (np.abs(weight).max(1, keepdims=True) / 127).astype(BF16)
    codes = np.clip(np.rint(weight / scale.astype(np.float32)), -128, 127).astype(np.int8)
    return {name: codes, f"{name}_scale": scale}, (codes * scale.astype(np.float32)).astype(BF16)


def pack_bnb8(name: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """Returns the parts of an int8 matrix of bitsandbytes, and its values in float32."""
    stats = np.abs(weight).max(1).astype(np.float32)
    codes = np.rint(weight * (127 / stats[:, None])).astype(np.int8)
    values = codes * stats[:, None] * np.float32(7.874015718698502e-3)
    base = name.removesuffix("weight")
    return {name: codes, f"{base}SCB": stats, f"{base}weight_format": np.array(0, np.uint8)}, values


def pack_nf4(name: str, weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
    """Returns the parts of an nf4 matrix of bitsandbytes, and its values in bfloat16."""
    blocks = weight.reshape(-1, 64)
    absmax = np.abs(blocks).max(1).astype(np.float32)
    codes = np.abs((blocks / absmax[:, None])[..., None] - NF4).argmin(-1).astype(np.uint8)
    values = (NF4[codes] * absmax[:, None]).astype(BF16).reshape(weight.shape)
    flat = codes.reshape(-1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    return {
        name: (flat[::2] << 4 | flat[1::2])[:, None],
        f"{name}.absmax": absmax,
        f"{name}.quant_map": NF4,
        f"{name}.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }, values


CASES = {
    "int4": (INT4, pack_int4, "bf16", "compressed-tensors int4"),
    "int8": (INT8, pack_int8, "bf16", "compressed-tensors int8"),
    "bnb8": (BNB8, pack_bnb8, "f32", "bitsandbytes int8"),
    "nf4": (BNB4, pack_nf4, "bf16", "bitsandbytes nf4"),
}


"""By name: the settings, the function that packs a matrix, its format in puna, and the container in reports."""


def write_quantised(folder: Path, case: str) -> tuple[LlamaConfig, Tensors]:
    """Writes a quantised folder; returns the configuration and all values."""
    settings, pack, _, _ = CASES[case]
    config = tiny_config(vocab_size=420, dtype="bfloat16")
    packed, plain = {}, {}
    for name, weight in tiny_tensors(config).items():
        if name.endswith("proj.weight"):
            parts, plain[name] = pack(name, weight / 8)
            packed |= parts
        else:
            packed[name] = plain[name] = (weight / 8 if weight.ndim == 2 else weight).astype(BF16)
    write_folder(folder, config, packed)
    change_config(folder, quantization_config=settings)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    return config, plain


def change_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))


@pytest.mark.parametrize("case", CASES)
def test_a_quantised_folder_is_run_and_converted(case: str, tmp_path: Path) -> None:
    config, plain = write_quantised(tmp_path / "packed", case)
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].format.name == CASES[case][2]
    for key, value in plain.items():
        assert np.array_equal(checkpoint.tensors[key].to_float32(), value.astype(np.float32)), key

    write_folder(tmp_path / "plain", config, plain)
    ids = np.arange(40, dtype=np.int64) % config.vocab_size
    chunks = [Chunk(consecutive_pages(len(ids)), ids, 0, len(ids))]
    logits, expected = (
        np.asarray(NativeBackend(config, open_checkpoint(tmp_path / name).tensors).forward(chunks).logits)
        for name in ("packed", "plain")
    )
    assert np.array_equal(logits, expected)

    puna.convert(tmp_path / "packed", tmp_path / "hf", verify=True)
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    converted = open_safetensors(tmp_path / "hf" / "model.safetensors").tensors
    for key, value in plain.items():
        assert np.array_equal(converted[key].to_float32(), value.astype(np.float32)), key
    puna.convert(tmp_path / "packed", tmp_path / "q8.gguf", quantize="q8_0")
    assert open_checkpoint(tmp_path / "q8.gguf").config.hidden_size == config.hidden_size


@pytest.mark.parametrize("case", CASES)
def test_pytorch_runs_a_quantised_folder(case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    config, plain = write_quantised(tmp_path / "packed", case)
    write_folder(tmp_path / "plain", config, plain)
    ids = torch.arange(40)[None] % config.vocab_size
    with torch.no_grad():
        expected, logits = (
            puna.LlamaForCausalLM.from_pretrained(tmp_path / folder)(ids).logits for folder in ("plain", "packed")
        )
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("case", CASES)
def test_inspection_names_the_method(case: str, tmp_path: Path) -> None:
    _, plain = write_quantised(tmp_path, case)
    report = inspect_checkpoint(tmp_path)
    assert not report.errors and report.container == f"safetensors, {CASES[case][3]}"
    assert report.parameters == sum(value.size for value in plain.values())
    notes = [note for note in report.notes if "quantise" in note]
    assert len(notes) == (case in ("int8", "bnb8")), "only methods that quantise activations have a note"
    assert not any("quantization_config" in warning for warning in report.warnings)


def test_older_names_of_the_settings_are_read(tmp_path: Path) -> None:
    _, plain = write_quantised(tmp_path, "int4")
    change_config(tmp_path, quantization_config=None, compression_config=INT4)
    key = "model.layers.0.mlp.up_proj.weight"
    assert np.array_equal(open_checkpoint(tmp_path).tensors[key].to_float32(), plain[key].astype(np.float32))


def test_settings_are_ignored_if_the_weights_are_plain(tmp_path: Path) -> None:
    config = tiny_config()
    write_folder(tmp_path, config, tiny_tensors(config))
    for settings in (INT4, BNB4, {"quant_method": "fp8"}):
        change_config(tmp_path, quantization_config=settings)
        assert any("quantization_config in config.json ignored" in note for note in open_checkpoint(tmp_path).notes)


def test_settings_without_their_matrices_are_refused(tmp_path: Path) -> None:
    write_quantised(tmp_path, "int4")
    change_config(tmp_path, quantization_config=BNB4)
    with pytest.raises(CheckpointError, match=r"quantised with bitsandbytes .*contain no matrix of this method"):
        open_checkpoint(tmp_path)


FP8 = np.ones((2, 2), ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize(
    ("name", "fields", "tensor"),
    [
        ("fp8", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, FP8),
        ("fbgemm_fp8", {"quantization_config": {"quant_method": "fbgemm_fp8"}}, FP8),
        ("modelopt", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, FP8),
        ("hqq", {"quantization_config": {"quant_method": "hqq"}}, np.ones((2, 2), np.uint8)),
        ("quanto", {"quantization_config": {"quant_method": "quanto"}}, np.ones((2, 2), np.int8)),
        ("aqlm", {"quantization_config": {"quant_method": "aqlm"}}, np.ones((2, 2), np.int16)),
        ("eetq", {"quantization_config": {"quant_method": "eetq"}}, np.ones((2, 2), np.int8)),
        ("torchao", {"quantization_config": {"quant_method": "torchao"}}, np.ones((2, 2), np.int8)),
        ("mxfp4", {"quantization_config": {"quant_method": "mxfp4"}}, np.ones((2, 2), np.uint8)),
        ("bitnet", {"quantization_config": {"quant_method": "bitnet"}}, np.ones((2, 2), np.uint8)),
        ("mlx", {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, np.ones((2, 2), np.uint32)),
        ("mlx", {"quantization": {"bits": 4}}, np.ones((2, 2), np.uint32)),
        ("an unknown method", {"quantization_config": {"bits": 4}}, np.ones((2, 2), np.float64)),
    ],
)
def test_the_error_for_another_method_names_it(
    name: str, fields: dict[str, Any], tensor: np.ndarray, tmp_path: Path
) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    key = "model.layers.0.mlp.up_proj.weight"
    del tensors[key]
    write_folder(tmp_path, config, tensors | {f"{key}_codes": tensor})
    change_config(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=rf"quantised with {name} according to .*use the unquantised model"):
        open_checkpoint(tmp_path)
    assert any(f"quantised with {name}" in error for error in inspect_checkpoint(tmp_path).errors)


def test_settings_in_a_separate_file_name_the_method(tmp_path: Path) -> None:
    config = tiny_config()
    write_folder(tmp_path, config, tiny_tensors(config) | {"model.layers.0.mlp.up_proj.weight_scale": np.ones(1)})
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    with pytest.raises(CheckpointError, match=r"quantised with modelopt according to hf_quant_config\.json"):
        open_checkpoint(tmp_path)


def test_integers_without_settings_are_refused(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    key = "model.layers.0.mlp.up_proj.weight"
    for kind in (np.int8, np.uint32, ml_dtypes.float8_e4m3fn, np.float64):
        write_folder(tmp_path, config, tensors | {key: tensors[key].astype(kind)})
        with pytest.raises(CheckpointError, match=r"up_proj\.weight' .*cannot be read as weights.*does not mention"):
            open_checkpoint(tmp_path)
