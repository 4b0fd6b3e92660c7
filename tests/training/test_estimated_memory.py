"""The estimate of memory before a run, compared with the maximum memory of the process, for every method."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.golden.files import TOKENIZER

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is that of Linux"),
]

MAKE = """
import shutil, sys
from pathlib import Path
import torch
from puna.config import LlamaConfig
from puna.convert import convert
from puna.model import LlamaForCausalLM

folder, tokenizer = sys.argv[1:]
torch.manual_seed(0)
config = LlamaConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8,
                     num_key_value_heads=4, vocab_size=8192)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder + "/model")
shutil.copy(tokenizer, folder + "/model/tokenizer.model")
convert(folder + "/model", folder + "/model.gguf", quantize="Q4_0")
"""

TRAIN = """
import json, sys
from pathlib import Path
from puna import train
from puna.native.memory import peak_memory
from puna.training.report.metrics import read_metrics

model, data, output, options = sys.argv[1:]
train(model, data, output=output, batch_size=16, max_length=256, threads=2, **json.loads(options))
print(read_metrics(Path(output)).start["estimated_memory"], peak_memory())
"""

CASES = {
    "lora": {},
    "dora": {"dora": True},
    "checkpointing": {"gradient_checkpointing": True},
    "reference": {"forward": "reference"},
    "ia3": {"method": "ia3"},
    "prompt": {"method": "prompt"},
    "ptuning": {"method": "ptuning"},
    "prefix": {"method": "prefix"},
    "bottleneck": {"method": "bottleneck"},
    "qlora": {"method": "qlora"},
    "full": {"method": "full"},
    "muon": {"method": "full", "optimizer": "muon"},
    "full in float32": {"method": "full", "dtype": "float32"},
}


def run(script: str, *arguments: str) -> str:
    """Returns the output of a Python program in a process of its own."""
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, the same in Q4_0, and documents of 12 to 256 tokens."""
    path = tmp_path_factory.mktemp("memory")
    run(MAKE, str(path), str(TOKENIZER))
    rows = [{"text": "the llama lives high in the mountains. " * (number * 7 % 23 + 1)} for number in range(64)]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("limit", [None, "1h"])  # of a short run without a limit of its time, less is measured
@pytest.mark.parametrize("case", CASES)
def test_the_estimated_memory_is_that_of_the_run(folder, tmp_path, case, limit):
    options = {"steps": 2, "max_time": limit, **CASES[case]}
    model = folder / ("model.gguf" if case == "qlora" else "model")
    output = run(TRAIN, str(model), str(folder / "data.jsonl"), str(tmp_path / "run"), json.dumps(options))
    estimated, needed = map(int, output.split())
    assert estimated == pytest.approx(needed, rel=0.15)
