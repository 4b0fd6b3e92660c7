"""Quantising beside llama.cpp's quantiser: processes in turns, from the same numbers, and what both lose.

    python benchmarks/quantize.py FOLDER TEXT [--model GGUF] [--formats q8_0,q4_k_m,q4_0] [--repeat 5] [--tokens 20000]

The model (the default one) becomes a Hugging Face folder, and that a GGUF file in float32, both by puna. From that file
`puna.convert`, the command `puna convert` and llama.cpp (`make .peers/llama/.done`) quantise, each with two threads;
puna's file is on the disk when it says so, llama.cpp's on its way there. A turn before the counted ones leaves modules
compiled, as an installation or a first run does. Then puna scores TEXT with the source and with both files:
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
PUNA = Path(sys.executable).with_name("puna")
WINDOW = 512


_OURS = """
import sys, time
from puna import convert
started = time.perf_counter()
convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3], threads=2)
print(time.perf_counter() - started)
"""


def timed(command: list[str], target: Path) -> tuple[float, float]:
    """Seconds of a process from start to end, and those it prints if it is a script; the target is removed before."""
    target.unlink(missing_ok=True)
    os.sync()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT / "benchmarks", env=environment
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return seconds, float(run.stdout.split()[-1]) if "-c" in command or "-m" in command else seconds


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
    ours, theirs, third = (given.folder / f"{name}.gguf" for name in ("puna", "llama", "command"))
    for name in given.formats.split(","):
        commands = {
            ours: [sys.executable, "-c", _OURS, str(plain), str(ours), name],
            theirs: [str(LLAMA), "-m", "peers.quantize", str(plain), str(theirs), name],
            third: [str(PUNA), "convert", str(plain), str(third), "--quantize", name, "--threads", "2"],
        }
        seconds: dict[Path, list[tuple[float, float]]] = {path: [] for path in commands}
        for turn in range(-1, given.repeat):
            for path in list(commands)[:: 1 if turn % 2 else -1]:
                found = timed(commands[path], path)
                if turn >= 0:
                    seconds[path].append(found)
        line = f"{name}:"
        for what, path, at in (("call", ours, 1), ("process", ours, 0), ("command", third, 0)):
            mine = statistics.median(both[at] for both in seconds[path])
            other = statistics.median(both[at] for both in seconds[theirs])
            line += f" {what} puna {mine:.2f} s, llama.cpp {other:.2f} s, {other / mine:.2f} times as fast;"
        if ids:
            lost, loses = nll(ours, ids), nll(theirs, ids)
            line += f" NLL puna {lost:.4f}, llama.cpp {loses:.4f} ({lost / loses - 1:+.2%})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
