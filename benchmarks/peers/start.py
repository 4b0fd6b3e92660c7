"""Measures the time from process start to first token, and the peak memory, with the files in the page cache."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers.comparisons import Comparison, Work
from peers.measure import Paths

FIRST_PROMPT = Work("prefill", 8)


def measure_start(
    comparison: Comparison, paths: Paths, threads: int, repeat: int, logs: Path
) -> dict[str, dict[str, Any]]:
    """Returns seconds and peak bytes of `puna generate` and of one forward pass of puna and llama.cpp in Python."""
    result: dict[str, dict[str, list[float]]] = {}
    for turn in range(repeat + 1):
        for name, sample in _measure_runners(comparison, paths, threads, logs).items():
            if turn:  # the first turn reads the files into the page cache
                entry = result.setdefault(name, {"seconds": [], "bytes": []})
                entry["seconds"].append(sample[0])
                entry["bytes"].append(sample[1])
    return {
        name: {"seconds": statistics.median(entry["seconds"]), "bytes": max(entry["bytes"]), "samples": entry}
        for name, entry in result.items()
    }


def _measure_runners(comparison: Comparison, paths: Paths, threads: int, logs: Path) -> dict[str, tuple[float, float]]:
    """Returns the seconds and peak bytes of each runner; llama.cpp runs without flash attention."""
    samples = {}
    for runner in comparison.runners:
        if runner.environment not in ("puna", "llama") or dict(runner.options).get("flash"):
            continue
        model = paths.model(comparison, runner)
        if runner.environment == "puna" and "q4_1" in comparison.name:
            samples["puna generate"] = _generate(model, threads)
        started = time.perf_counter()
        worker = paths.start(runner, logs / "start.log")
        worker.ask(
            "load", model=str(model), threads=threads, options=dict(runner.options), sequences=1,
            works=[{"do": "prefill", "tokens": 8, "context": 0, "sequences": 1}],
        )  # fmt: skip
        worker.ask("prefill", tokens=FIRST_PROMPT.tokens, context=0, sequences=1)
        seconds = time.perf_counter() - started
        samples[f"{runner.name}, forward pass"] = (seconds, worker.ask("memory"))
        worker.close()
    return samples


def _generate(model: Path, threads: int) -> tuple[float, float]:
    """Runs `puna generate` for one token; returns the seconds and the peak memory in bytes of the process."""
    started = time.perf_counter()
    path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path[1:])
    process = subprocess.Popen(
        [sys.executable, "-m", "puna", "generate", "--model", model, "--prompt", "Gravity is", "--max-tokens", "1",
         "--threads", str(threads)],
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"puna generate ended with status {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024
