"""GGUF files in every block format: values, inspection, conversion, and NLL on both backends."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants

from puna import LLM
from puna.checkpoint import inspect_checkpoint, open_checkpoint
from puna.convert import convert
from puna.errors import CheckpointError
from puna.formats.blocks import FORMATS
from puna.formats.gguf import open_gguf
from tests.helpers.blocks import random_blocks
from tests.helpers.tiny_checkpoints import llama_cpp_permute, tiny_config, tiny_tensors, write_gguf

CONFIG = tiny_config(vocab_size=420, hidden_size=256, intermediate_size=512, head_dim=64)
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(f"▁{i}" for i in range(161))]
TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(161)],
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 161,
}
BLOCK_FORMATS = [name for name, form in FORMATS.items() if form.values > 1]
READ_ONLY_FORMATS = [
    "iq4_xs",
    "iq3_s",
    "iq3_xxs",
    "iq2_s",
    "iq2_xs",
    "iq2_xxs",
    "iq1_m",
    "iq1_s",
    "tq2_0",
    "tq1_0",
    "mxfp4",
]


def write_model(path: Path, name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Writes a model whose matrices are random blocks of one format; returns their values, decoded by gguf."""
    form, kind = FORMATS[name], gguf.GGMLQuantizationType(FORMATS[name].ggml_id)
    random = np.random.default_rng(form.ggml_id)
    tensors, packed, values = tiny_tensors(CONFIG), {}, {}
    for key, tensor in tensors.items():
        if tensor.ndim == 2:
            spread = 0.3 if key == "lm_head.weight" else 0.05
            blocks = random_blocks(name, form.bytes, tensor.size // form.values, spread, random)
            packed[key] = (blocks.reshape(len(tensor), -1), kind)
            values[key] = quants.dequantize(packed[key][0], kind)
        else:
            tensors[key] = np.abs(tensor)
    return write_gguf(path, CONFIG, tensors, keys=TOKENIZER, packed=packed), values


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_file_in_a_block_format_is_read_by_both_backends(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path, values = write_model(tmp_path / "m.gguf", name)
    checkpoint = open_checkpoint(path)
    for key, expected in values.items():
        # The file's rows of q and k are in llama.cpp's order, which `llama_cpp_permute` produces.
        heads = {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2])
        result = checkpoint.tensors[key].to_float32()
        np.testing.assert_array_equal(result if heads is None else llama_cpp_permute(result, heads), expected)
    report = inspect_checkpoint(path)
    assert report.dtypes[name]["tensors"] == len(values)
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 100).tolist()
    native, torch = (LLM(path, backend=backend).nll(ids) for backend in ("native", "torch"))
    assert torch.std() > 1.0  # so that the next comparison distinguishes models
    assert abs(native.mean() / torch.mean() - 1) < 0.005
    assert np.sqrt(((native - torch) ** 2).mean()) < 0.1 * torch.std()  # rounded activations; measured up to 0.051


@pytest.mark.parametrize("name", READ_ONLY_FORMATS)
def test_tensors_in_read_only_formats_are_copied(name: str, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "m.gguf", name)
    convert(path, tmp_path / "copy.gguf", to="gguf", verify=True)
    source, copy = open_gguf(path), open_gguf(tmp_path / "copy.gguf")
    file_type = "MOSTLY_MXFP4_MOE" if name == "mxfp4" else f"MOSTLY_{name.upper()}"
    assert copy.metadata["general.file_type"] == gguf.LlamaFileType[file_type]
    assert source.tensors.keys() == copy.tensors.keys()
    for key, tensor in source.tensors.items():
        assert copy.tensors[key].format == tensor.format and np.array_equal(copy.tensors[key].raw, tensor.raw), key
    convert(path, tmp_path / "hf", to="hf")
    decoded = open_checkpoint(tmp_path / "hf").tensors
    for key, weight in open_checkpoint(path).tensors.items():
        np.testing.assert_array_equal(decoded[key].to_float32(), weight.to_float32())
    with pytest.raises(CheckpointError, match=f"'{name.upper()}' is only read and copied; puna quantises to q4_0"):
        convert(path, tmp_path / "quantised.gguf", quantize=name.upper())
