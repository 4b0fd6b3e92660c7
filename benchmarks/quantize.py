"""Compares puna's quantiser with llama.cpp's: speed on the same file, and the loss of accuracy.

    python benchmarks/quantize.py FOLDER TEXT [--model GGUF] [--formats q8_0,q4_k_m,q4_0] [--repeat 5] [--tokens 20000]

puna first converts the model to a Hugging Face folder, and this folder to a float32 GGUF file. Then `puna.convert`, the
command `puna convert` and llama.cpp (`make .peers/llama/.done`) quantise this file in turns, each in its own process
with two threads. puna waits until its file is on disk; llama.cpp does not. The first turn does not count, because
Python may compile modules in it.

Afterwards puna scores TEXT with the source and both quantised files: the mean negative log-likelihood of the first
tokens, in windows of 512. FOLDER needs three times the size of the model in float32.
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


_PUNA_SCRIPT = """
import sys, time
from puna import convert
started = time.perf_counter()
convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3], threads=2)
print(time.perf_counter() - started)
"""


def time_command(command: list[str], target: Path) -> tuple[float, float]:
    """Runs a command after removing its target.

    Returns the seconds from start to end of the process, and the seconds that a Python script prints; for other
    commands, the first number twice.
    """
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
    """Returns the mean negative log-likelihood in nats per token."""
    llm = LLM(model, threads=2)
    windows = [llm.nll(ids[start : start + WINDOW]) for start in range(0, len(ids) - 1, WINDOW)]
    return float(np.mean(np.concatenate(windows)))


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder for the files.")
    parser.add_argument("text", type=Path, help="Text to score.")
    parser.add_argument("--model", type=Path, help="Model to quantise; default: puna's default model.")
    parser.add_argument("--formats", default="q8_0,q4_k_m,q4_0", help="Formats, separated by commas.")
    parser.add_argument("--repeat", type=int, default=5, help="Measurements of each quantiser.")
    parser.add_argument("--tokens", type=int, default=20_000, help="Tokens of the text to score; 0: no scores.")
    return parser.parse_args()


def measure(commands: dict[Path, list[str]], repeat: int) -> dict[Path, list[tuple[float, float]]]:
    """Runs the commands in turns; returns the times of each target file's command."""
    seconds: dict[Path, list[tuple[float, float]]] = {path: [] for path in commands}
    for turn in range(-1, repeat):  # turn -1 warms up
        for path in list(commands)[:: 1 if turn % 2 else -1]:
            times = time_command(commands[path], path)
            if turn >= 0:
                seconds[path].append(times)
    return seconds


def main() -> None:
    """Converts the model, then measures each format and prints one line for it."""
    arguments = parse_arguments()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    source, float32_file = folder / "hf", folder / "f32.gguf"
    convert(arguments.model, source, to="hf", dtype="float32", overwrite=True)
    convert(source, float32_file, to="gguf", overwrite=True)
    ids: list[int] = []
    if arguments.tokens:
        ids = LLM(float32_file).tokenizer.encode(arguments.text.read_text("utf-8"))[: arguments.tokens]
        print(f"float32: NLL {nll(float32_file, ids):.4f} nats per token on {len(ids)} tokens", flush=True)
    puna_file, llama_file, command_file = (folder / f"{name}.gguf" for name in ("puna", "llama", "command"))
    for name in arguments.formats.split(","):
        seconds = measure(
            {
                puna_file: [sys.executable, "-c", _PUNA_SCRIPT, str(float32_file), str(puna_file), name],
                llama_file: [str(LLAMA), "-m", "peers.quantize", str(float32_file), str(llama_file), name],
                command_file: [
                    str(PUNA), "convert", str(float32_file), str(command_file), "--quantize", name, "--threads", "2"
                ],
            },
            arguments.repeat,
        )  # fmt: skip
        line = f"{name}:"
        for label, path, index in (("call", puna_file, 1), ("process", puna_file, 0), ("command", command_file, 0)):
            puna_time = statistics.median(times[index] for times in seconds[path])
            llama_time = statistics.median(times[index] for times in seconds[llama_file])
            line += f" {label} puna {puna_time:.2f} s, llama.cpp {llama_time:.2f} s, "
            line += f"{llama_time / puna_time:.2f} times as fast;"
        if ids:
            puna_nll, llama_nll = nll(puna_file, ids), nll(llama_file, ids)
            line += f" NLL puna {puna_nll:.4f}, llama.cpp {llama_nll:.4f} ({puna_nll / llama_nll - 1:+.2%})"
        print(line, flush=True)


if __name__ == "__main__":
    main()
