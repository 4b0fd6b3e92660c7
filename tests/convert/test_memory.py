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
from puna.convert.plan import TOKEN_MEMORY
from puna.formats.blocks import FORMATS
from puna.formats.new_tensor import NewTensor
from puna.saving import write_shard
from tests.convert.test_merging import golden_adapter
from tests.helpers.vocabularies import train_sentencepiece

pytestmark = pytest.mark.slow

LARGEST = 8192 * 1024 * 2
"""Bytes of the largest tensor, a feed-forward matrix; the model has nine such matrices and 178 MB in all."""

BOUND = 2 * LARGEST + 120e6
"""Bytes that a conversion may need: fewer than the model has."""

WIDE = 60_000
"""Tokens of the model with a large vocabulary."""

MEASURE = """
import json, re, sys
import puna
plans = []
*paths, name, options = sys.argv[1:]
getattr(puna, name)(*paths, on_plan=plans.append, **json.loads(options))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], plans[0].memory)
"""


def write_random_model(folder: Path, **settings: int) -> Path:
    """Writes a model in bfloat16 with the hidden size 1024, one tensor at a time, and returns its folder."""
    config = LlamaConfig(
        hidden_size=1024, num_attention_heads=8, num_key_value_heads=8, dtype="bfloat16",
        architectures=["LlamaForCausalLM"], **settings,
    )  # fmt: skip
    folder.mkdir()
    config.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece())
    # Values from 2^-14 to 1: smaller ones are subnormal in float16, and processors convert them twenty times as slowly.
    tensors = []
    for number, (name, shape) in enumerate(expected_tensors(config, "lm")):
        values = partial(np.random.default_rng(number).integers, 0x3880, 0x3F80, shape, np.uint16)
        tensors.append(
            NewTensor(name, FORMATS["bf16"], shape, lambda values=values: iter([values().view(np.uint8).reshape(-1)]))
        )
    write_shard(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The paths of one model in each layout, and quantised to q4_0."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux reports the peak memory of a process")
    root = tmp_path_factory.mktemp("large")
    write_random_model(root / "hf", vocab_size=424, intermediate_size=8192, num_hidden_layers=3)
    convert(root / "hf", root / "meta", to="meta", shards=4)
    convert(root / "hf", root / "gguf", to="gguf")
    convert(root / "hf", root / "q4_0", quantize="q4_0")
    assert sum(file.stat().st_size for file in open_checkpoint(root / "meta").files) > 1.15 * BOUND
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
    assert peak * 1024 < min(BOUND, planned), re.sub(r"\s+", " ", run.stderr)


@pytest.mark.parametrize(("source", "target"), [("hf", "out"), ("q4_0", "out.gguf")])
def test_the_memory_of_a_merge_is_bounded(source: str, target: str, folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = golden_adapter(tmp_path / "adapter", model=folders["hf"])
    arguments = [str(folders[source]), str(adapter), str(tmp_path / target), "merge", '{"verify": false}']
    run = subprocess.run([sys.executable, "-c", MEASURE, *arguments], check=True, capture_output=True, text=True)
    peak, planned = map(int, run.stdout.split())
    assert peak * 1024 < min(BOUND, planned), run.stderr


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of which nearly all weights are those of a large vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return write_random_model(folder, vocab_size=WIDE, intermediate_size=256, num_hidden_layers=1)


@pytest.mark.parametrize(
    "options",
    [{"to": "hf", "verify": True}, {"quantize": "q4_0", "verify": True}, {"quantize": "q4_0", "calibrate": ""}],
    ids=["verify", "verify-q4_0", "calibrate"],
)
def test_the_plan_includes_the_memory_for_running_the_models(
    options: dict[str, Any], wide: Path, tmp_path: Path
) -> None:
    """The planned memory covers a forward pass with a large vocabulary, and is less than twice the peak.

    The plan without its memory for the tokenizer covers it too, because this tokenizer is small. The weights (in
    bfloat16 or in q8_0) and the logits are all larger than the difference from the peak: the test fails if the plan
    omits one of them.
    """
    if "calibrate" in options:
        (tmp_path / "text.txt").write_text("The llama lives in the high grassland. " * 30)
        options = options | {"calibrate": str(tmp_path / "text.txt")}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(wide), str(tmp_path / "out"), "convert", json.dumps(options)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    peak, planned = map(int, run.stdout.split())
    assert planned / 2 < peak * 1024 < planned - TOKEN_MEMORY * WIDE, run.stderr
