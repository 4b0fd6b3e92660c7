"""Conversion in bounded memory: a model many times the bound, each layout into each."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from puna import convert
from puna.checkpoint import open_checkpoint
from puna.checkpoint.names import expected_tensors
from puna.checkpoint.saving import write_shard
from puna.config import LlamaConfig
from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from tests.tokenizer.vocabularies import train_sentencepiece

LARGEST = 8192 * 2048 * 2
"""Bytes of the largest tensor, a matrix of the feed-forward block; the model has a dozen like it and 550 MB."""

MEASURE = """
import re, sys
from puna import convert
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], quantize=sys.argv[4] or None, shards=int(sys.argv[5]) or None)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in each layout."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's greatest memory")
    root = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=420, hidden_size=2048, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=16,
        num_key_value_heads=16, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    (root / "hf").mkdir()
    config.save_pretrained(root / "hf")
    (root / "hf" / "tokenizer.model").write_bytes(train_sentencepiece())
    tensors = []
    for number, (name, shape) in enumerate(expected_tensors(config, "lm")):
        values = partial(np.random.default_rng(number).integers, 0, 0x3F80, shape, np.uint16)
        tensors.append(
            NewTensor(name, FORMATS["bf16"], shape, lambda values=values: iter([values().view(np.uint8).reshape(-1)]))
        )
    write_shard(root / "hf" / "model.safetensors", tensors)
    convert(root / "hf", root / "meta", to="meta", shards=4)
    convert(root / "hf", root / "gguf", to="gguf")
    assert sum(file.stat().st_size for file in open_checkpoint(root / "meta").files) > 5e8
    return {kind: root / kind for kind in ("hf", "meta", "gguf")}


@pytest.mark.parametrize(
    ("source", "to", "quantize", "shards"),
    [
        ("meta", "hf", "", 2),
        ("meta", "gguf", "Q4_K_M", 0),
        ("hf", "meta", "", 4),
        ("hf", "gguf", "", 0),
        ("gguf", "hf", "", 1),
    ],
)
def test_memory_is_bounded(
    source: str, to: str, quantize: str, shards: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    arguments = [str(folders[source]), str(tmp_path / "out"), to, quantize, str(shards)]
    run = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, capture_output=True, text=True)
    assert int(run.stdout) * 1024 < 2 * LARGEST + 200e6, re.sub(r"\s+", " ", run.stderr)
