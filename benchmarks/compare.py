"""Speed of puna beside llama.cpp on the same GGUF files, in one run, as ratios.

    make peers
    python benchmarks/compare.py MODEL.gguf [MODEL.gguf ...] [--repeat 5] [--threads 2] [--json FILE]

Each engine runs in a process of its own, which sleeps while the other works; they take turns, so that a slow minute of
the machine meets both. Medians of `--repeat`. llama.cpp is llama-cpp-python's, built for this processor, with an f16
cache and flash attention on and off: the faster of both counts. Neither side speculates. Before and after each file the
machine is measured; where its cores were not whole the table says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from puna.native.measure import measure_machine

HERE = Path(__file__).parent
WORKS = [("prefill", 512, 0), ("decode", 64, 16), ("decode", 64, 512)]
"""(phase, tokens, context)."""


class Engine:
    """A worker process: one JSON line in, one out."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> Any:
        """Sends a question and waits for the answer."""
        to, back = self.process.stdin, self.process.stdout
        assert to is not None and back is not None
        to.write(json.dumps(question) + "\n")
        to.flush()
        answer = back.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def compare(model: str, threads: int, repeat: int, peer: str) -> dict[str, Any]:
    """Speeds of one file in every engine."""
    commands = {
        "puna": [sys.executable, str(HERE / "worker_puna.py"), model, str(threads)],
        "llama.cpp": [peer, str(HERE / "worker_llama_cpp.py"), model, str(threads), "0"],
        "llama.cpp, flash": [peer, str(HERE / "worker_llama_cpp.py"), model, str(threads), "1"],
    }
    before = measure_machine(threads)
    engines = {name: Engine(command) for name, command in commands.items()}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    try:
        for turn in range(repeat + 1):  # the first warms up
            for phase, tokens, context in WORKS:
                for name, engine in engines.items():
                    speed = engine.ask(phase=phase, tokens=tokens, context=context)
                    if turn:
                        samples[name].setdefault(f"{phase} {tokens} after {context}", []).append(speed)
        memory = {name: engine.ask(phase="memory") for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()
    after = measure_machine(threads)
    return {
        "model": model,
        "machine": {"before": vars(before), "after": vars(after)},
        "samples": samples,
        "peak_memory_bytes": memory,
    }


def show(console: Console, found: dict[str, Any]) -> None:
    """The table of one file."""
    table = Table(title=Path(found["model"]).name, box=None)
    for column in ("work", "puna", "llama.cpp", "ratio"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for work in found["samples"]["puna"]:
        medians = {name: statistics.median(samples[work]) for name, samples in found["samples"].items()}
        best = max(speed for name, speed in medians.items() if name != "puna")
        table.add_row(work, f"{medians['puna']:.1f}", f"{best:.1f}", f"{medians['puna'] / best:.2f} x")
    memory = found["peak_memory_bytes"]
    table.add_row("peak memory, MB", f"{memory['puna'] / 1e6:.0f}", f"{memory['llama.cpp'] / 1e6:.0f}", "")
    console.print(table)
    for when, machine in found["machine"].items():
        whole = "whole" if machine["cores_ok"] else "NOT WHOLE: measure again"
        speeds = f"memory {machine['dram_gb_s']:.1f} GB/s, int8 {machine['int8_gops']:.0f} Gop/s"
        console.print(f"  {when}: {speeds}, cores {whole}")


def main() -> None:
    """Compares each file that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", default=str(HERE.parent / ".peers/bin/python"), help="Python with llama-cpp-python.")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    found = []
    for model in wanted.models:
        found.append(compare(model, wanted.threads, wanted.repeat, wanted.peer))
        show(Console(), found[-1])
    if wanted.json:
        wanted.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
