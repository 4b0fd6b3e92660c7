"""Thousands of mutated checkpoints under a 1 GB limit: each either loads completely or raises a PunaError."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy

from puna.formats.blocks import FORMATS
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_gguf
from tests.helpers.torch_files import DTYPES, save_torch, to_torch

FREQS = np.linspace(1, 4, 4, dtype=np.float32)
COUNTS = {"gguf": 400, "safetensors": 300, "bin": 700}
CASES = [
    *COUNTS.items(),
    *(pytest.param(kind, 20 * count, marks=pytest.mark.soak, id=f"{kind}-many") for kind, count in COUNTS.items()),
]


def write_seeds(folder: Path) -> None:
    """Writes valid files of each kind, which the fuzzer mutates, and their config.json."""
    torch = pytest.importorskip("torch")
    config = tiny_config(hidden_size=32, intermediate_size=32, head_dim=8, vocab_size=40, num_hidden_layers=1)
    config.save_pretrained(folder)
    tensors = tiny_tensors(config)
    vocabulary = {"tokenizer.ggml.tokens": [f"▁{n}" for n in range(40)], "tokenizer.ggml.token_type": [1] * 40}
    write_gguf(folder / "gguf-0", config, tensors, keys=vocabulary)
    write_gguf(folder / "gguf-1", config, tensors, gguf.GGMLQuantizationType.Q4_0, extra={"rope_freqs.weight": FREQS})
    write_gguf(folder / "gguf-2", config, tensors, gguf.GGMLQuantizationType.Q8_0, keys={"general.alignment": 64})
    write_k_quants(folder / "gguf-3")
    half = {name: tensor.astype(DTYPES["bfloat16"]) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "safetensors-0", {"format": "pt"})
    safetensors.numpy.save_file(half, folder / "safetensors-1")
    save_torch(tensors, folder / "bin-0")
    transposed = {
        name: to_torch(tensor.T.copy()).t() if tensor.ndim == 2 else to_torch(tensor) for name, tensor in half.items()
    }
    torch.save(transposed, folder / "bin-1", pickle_protocol=4)


def write_k_quants(path: Path) -> None:
    """Writes a model with random bytes as matrices in the formats that the package gguf cannot write."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 128, "vocab_size": 4, "num_hidden_layers": 1}
    config = tiny_config(num_attention_heads=2, num_key_value_heads=1, **sizes)
    rng = np.random.default_rng(0)
    kinds = [form for form in FORMATS.values() if form.values == 256]
    packed = {}
    for index, (name, tensor) in enumerate(tiny_tensors(config).items()):
        if tensor.ndim == 2:
            form = kinds[index % len(kinds)]
            raw = rng.integers(0, 256, (tensor.shape[0], tensor.shape[1] // 256 * form.bytes), np.uint8)
            packed[name] = (raw, gguf.GGMLQuantizationType(form.ggml_id))
    write_gguf(path, config, tiny_tensors(config), packed=packed)


@pytest.mark.parametrize(("kind", "total"), CASES)
@pytest.mark.slow
def test_mutated_files_load_or_are_refused(tmp_path: Path, kind: str, total: int) -> None:
    write_seeds(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("fuzz_worker.py")), str(tmp_path), kind, str(total)]
    # Each thread of a BLAS reserves address space, which the limit counts.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    summary = json.loads(process.stdout)
    assert summary["failures"] == []
    results = summary["results"]
    assert sum(results.values()) == total
    # The mutations are effective: valid files load, and many mutated files are refused, with different messages.
    assert results["keep: loaded"] >= total / 50 and results["truncate: refused"] >= total / 30
    assert sum(count for name, count in results.items() if name.endswith("refused")) > 0.3 * total
    assert summary["different_messages"] > 40
