"""Conversions between all layouts need bounded memory, less than the size of the model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna import convert
from puna.checkpoint import open_checkpoint
from puna.checkpoint.names import expected_tensors
from puna.config import LlamaConfig
from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from puna.saving import write_shard
from tests.convert.test_merging import golden_adapter
from tests.helpers.vocabularies import train_sentencepiece

pytestmark = pytest.mark.slow

LARGEST = 8192 * 1024 * 2
"""Bytes of the largest tensor, a feed-forward matrix; the model has twelve such matrices and 237 MB in all."""

MEASURE = """
import json, re, sys
import puna
plans = []
*paths, name, options = sys.argv[1:]
getattr(puna, name)(*paths, on_plan=plans.append, **json.loads(options))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], plans[0].memory)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The paths of one model in each layout, and quantised to q4_0."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux reports the peak memory of a process")
    root = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=424, hidden_size=1024, intermediate_size=8192, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    (root / "hf").mkdir()
    config.save_pretrained(root / "hf")
    (root / "hf" / "tokenizer.model").write_bytes(train_sentencepiece())
    # Values from 2^-14 to 1: smaller ones are subnormal in float16, and processors convert them twenty times as slowly.
    tensors = []
    for number, (name, shape) in enumerate(expected_tensors(config, "lm")):
        values = partial(np.random.default_rng(number).integers, 0x3880, 0x3F80, shape, np.uint16)
        tensors.append(
            NewTensor(name, FORMATS["bf16"], shape, lambda values=values: iter([values().view(np.uint8).reshape(-1)]))
        )
    write_shard(root / "hf" / "model.safetensors", tensors)
    convert(root / "hf", root / "meta", to="meta", shards=4)
    convert(root / "hf", root / "gguf", to="gguf")
    convert(root / "hf", root / "q4_0", quantize="q4_0")
    assert sum(file.stat().st_size for file in open_checkpoint(root / "meta").files) > 2.3e8
    return {kind: root / kind for kind in ("hf", "meta", "gguf", "q4_0")}


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("meta", {"to": "hf", "shards": 2}),
        ("meta", {"quantize": "Q4_K_M"}),
        ("hf", {"to": "meta", "shards": 4}),
        ("hf", {"to": "meta", "shards": 8, "dtype": "float16"}),
        ("hf", {"to": "meta", "shards": 8, "dtype": "float32", "kv_heads": 2, "pad_vocab_to": 64}),
        ("hf", {"to": "gguf"}),
        ("hf", {"quantize": "q4_0"}),
        ("gguf", {"to": "hf", "shards": 1}),
        ("q4_0", {"to": "meta", "shards": 8, "dtype": "bfloat16"}),
        ("q4_0", {"to": "meta", "shards": 1, "dtype": "bfloat16"}),
        ("q4_0", {"to": "hf"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
@pytest.mark.slow
def test_memory_is_bounded(source: str, options: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    """The peak memory is below a bound and below the memory that the plan states."""
    arguments = [str(folders[source]), str(tmp_path / "out"), "convert", json.dumps(options)]
    run = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, capture_output=True, text=True)
    peak, planned = map(int, run.stdout.split())
    assert peak * 1024 < min(2 * LARGEST + 120e6, planned), re.sub(r"\s+", " ", run.stderr)


@pytest.mark.parametrize(("source", "target"), [("hf", "out"), ("q4_0", "out.gguf")])
def test_the_memory_of_a_merge_is_bounded(source: str, target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = golden_adapter(tmp_path / "adapter", model=folders["hf"])
    arguments = [str(folders[source]), str(adapter), str(tmp_path / target), "merge", '{"verify": false}']
    run = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, capture_output=True, text=True)
    peak, planned = map(int, run.stdout.split())
    assert peak * 1024 < min(2 * LARGEST + 120e6, planned), run.stderr


@pytest.fixture(scope="module")
def wide(folders: dict[str, Path]) -> Path:
    """The folder of the same model with a large vocabulary."""
    convert(folders["hf"], folders["hf"].parent / "wide", to="hf", vocab_size=60000)
    return folders["hf"].parent / "wide"


@pytest.mark.parametrize(
    "options",
    [{"to": "hf", "verify": True}, {"quantize": "q4_0", "verify": True}, {"quantize": "q4_0", "calibrate": ""}],
    ids=["verify", "verify-q4_0", "calibrate"],
)
def test_the_plan_includes_the_memory_for_running_the_models(
    options: dict[str, Any], wide: Path, tmp_path: Path
) -> None:
    """The planned memory covers a forward pass with a large vocabulary, and is less than twice the peak."""
    if "calibrate" in options:
        (tmp_path / "text.txt").write_text("The llama lives in the high grassland. " * 30)
        options = options | {"calibrate": str(tmp_path / "text.txt")}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(wide), str(tmp_path / "out"), "convert", json.dumps(options)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    peak, planned = map(int, run.stdout.split())
    assert planned / 2 < peak * 1024 < planned, run.stderr
