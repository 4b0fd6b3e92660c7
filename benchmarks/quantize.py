"""Quantising beside llama.cpp's quantiser: processes in turns, from the same numbers, and what both lose.

    python benchmarks/quantize.py FOLDER TEXT [--model GGUF] [--formats q8_0,q4_k_m,q4_0] [--repeat 5] [--tokens 20000]

The model (the default one) becomes a Hugging Face folder, and that a GGUF file in float32, both by puna. From that file
`puna.convert` and llama.cpp (`make .peers/llama/.done`) quantise, both with two threads; puna's file is on
the disk when it says so, llama.cpp's on its way there. Then puna scores TEXT with the source and with both files:
mean negative log-likelihood of its first tokens, in windows of 512. FOLDER needs three times the model's size in
float32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from puna import LLM, convert

ROOT = Path(__file__).parents[1]
LLAMA = ROOT / ".peers" / "llama" / "bin" / "python"
WINDOW = 512


_OURS = """
import sys, time
from puna import convert
started = time.perf_counter()
convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3], threads=2)
print(time.perf_counter() - started)
"""


def timed(command: list[str], target: Path) -> tuple[float, float]:
    """Seconds of a process from start to end, and of the call in it; the target is removed before."""
    target.unlink(missing_ok=True)
    os.sync()
    started = time.perf_counter()
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT / "benchmarks")
    return time.perf_counter() - started, float(run.stdout.split()[-1])


def nll(model: Path, ids: list[int]) -> float:
    """Mean negative log-likelihood in nats per token."""
    llm = LLM(model, threads=2)
    windows = [llm.nll(ids[start : start + WINDOW]) for start in range(0, len(ids) - 1, WINDOW)]
    return float(np.mean(np.concatenate(windows)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--formats", default="q8_0,q4_k_m,q4_0")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20_000, help="0 scores nothing")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    source, plain = given.folder / "hf", given.folder / "f32.gguf"
    convert(given.model, source, to="hf", dtype="float32", overwrite=True)
    convert(source, plain, to="gguf", overwrite=True)
    ids: list[int] = []
    before = 0.0
    if given.tokens:
        ids = LLM(plain).tokenizer.encode(given.text.read_text("utf-8"))[: given.tokens]
        before = nll(plain, ids)
        print(f"float32: NLL {before:.4f} nats per token on {len(ids)} tokens", flush=True)
    ours, theirs = given.folder / "puna.gguf", given.folder / "llama.gguf"
    for name in given.formats.split(","):
        commands = {
            ours: [sys.executable, "-c", _OURS, str(plain), str(ours), name],
            theirs: [str(LLAMA), "-m", "peers.quantize", str(plain), str(theirs), name],
        }
        seconds: dict[Path, list[tuple[float, float]]] = {path: [] for path in commands}
        for turn in range(given.repeat):
            for path in (ours, theirs) if turn % 2 else (theirs, ours):
                seconds[path].append(timed(commands[path], path))
        line = f"{name}:"
        for at, what in enumerate(("process", "call")):
            mine, other = (statistics.median(both[at] for both in seconds[path]) for path in (ours, theirs))
            line += f" {what} puna {mine:.2f} s, llama.cpp {other:.2f} s, {other / mine:.2f} times as fast;"
        if ids:
            lost, loses = nll(ours, ids), nll(theirs, ids)
            line += f" NLL puna {lost:.4f}, llama.cpp {loses:.4f} ({lost / loses - 1:+.2%})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
